// The label form and the history under it. What is typed is kept per feature until it is saved.
const SURE = ["1: a guess", "2: likely", "3: sure"]
const SAFETY = ["0: none", "1: watch", "2: dual use", "3: harmful"]

const ownLabel = (item, author) =>
  item.history.find((event) => event.author === author && !event.undone && ["write", "edit", "accept"].includes(event.action))

const startingDraft = (item, state) => {
  const own = ownLabel(item, state.author)
  return {
    text: own?.text ?? "",
    tags: (own?.tags ?? []).join(", "),
    confidence: own?.confidence ?? null,
    safety: own?.safety ?? null,
    note: own?.note ?? "",
    basedOn: own?.id ?? null,
    since: Date.now(),
    isTouched: false,
  }
}

const draftOf = (item, state) => {
  const kept = state.drafts.get(item.feature)
  if (kept?.isTouched) return kept
  const draft = startingDraft(item, state)
  if (kept && kept.basedOn === draft.basedOn) draft.since = kept.since
  state.drafts.set(item.feature, draft)
  return draft
}

const field = (label, input, tag = "label") => el(tag, { class: "field" }, el("span", {}, label), input)

const touch = (draft, name, value) => Object.assign(draft, { [name]: value, isTouched: true, savedAs: null })

const typed = (tag, attributes, draft, name) => {
  const input = el(tag, attributes)
  input.value = draft[name] ?? ""
  input.addEventListener("input", () => {
    touch(draft, name, input.value)
  })
  return input
}

const choice = (name, labels, draft, offset, meanings) => {
  const group = el("div", { class: "choice", role: "radiogroup", "aria-label": name })
  const draw = () =>
    group.replaceChildren(
      ...labels.map((label, index) => {
        const value = index + offset
        const chosen = draft[name] === value
        return button(
          label,
          meanings[index],
          () => {
            touch(draft, name, chosen ? null : value)
            draw()
          },
          { role: "radio", "aria-checked": String(chosen), "data-choice": `${name}-${value}` },
        )
      }),
    )
  draw()
  return group
}

const labelForm = (item, state) => {
  const draft = draftOf(item, state)
  const form = el("form", { class: "label", "data-feature": item.feature, autocomplete: "off" })
  const text = typed("textarea", { rows: 3, name: "text", placeholder: "what is it about? 2 to 6 words", "aria-label": "label" }, draft, "text")
  const tags = typed("input", { name: "tags", list: "known-tags", placeholder: "comma between", spellcheck: "false" }, draft, "tags")
  const note = typed("input", { name: "note" }, draft, "note")
  const author = el("input", { name: "author", class: "author", "aria-label": "you are", spellcheck: "false", maxlength: 200 })
  author.value = state.author
  author.addEventListener("change", () => state.rename(author.value))
  const save = (isNext) => (event) => {
    event?.preventDefault()
    state.save(item, draft, isNext)
  }
  form.addEventListener("submit", save(true))
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save(true)(event)
    if (event.key === "Escape") event.target.blur()
  })
  form.append(
    el("h2", {}, `Label feature ${item.feature}`),
    text,
    field("Tags", tags),
    el("datalist", { id: "known-tags" }, state.tags.map((tag) => el("option", { value: tag }))),
    el(
      "div",
      { class: "pair" },
      field("How sure", choice("confidence", ["1", "2", "3"], draft, 1, SURE), "div"),
      field("Safety", choice("safety", ["0", "1", "2", "3"], draft, 0, SAFETY), "div"),
    ),
    field("Note", note),
    el(
      "div",
      { class: "actions" },
      el("button", { type: "submit", class: "primary", title: "Ctrl+Enter in the text" }, "Save and next"),
      button("Save", "save and stay", save(false), { "data-act": "save" }),
      button("Undo", "take back my last save (u)", state.undoLast, { "data-act": "undo-last", disabled: state.done.length === 0 }),
    ),
    el("p", { class: "who" }, "as ", author),
  )
  return form
}

const historyEntry = (event, state) => {
  const details = [
    event.confidence ? `sure ${event.confidence}` : "",
    event.safety ? `safety ${event.safety}` : "",
    event.tags.join(", "),
    event.shown.note,
  ]
  const isOwn = event.author === state.author && !event.undone
  return el(
    "li",
    { class: event.undone ? "undone" : "", "data-event": event.id },
    el("div", {}, el("b", {}, event.shown.text || event.action), event.undone ? el("em", {}, " taken back") : null),
    el("small", {}, [event.shown.author, event.at, ...details].filter(Boolean).join(" · ")),
    isOwn ? button("undo", "take this label back", () => state.undo(event.id, event), { class: "link", "data-act": "undo" }) : null,
  )
}

const labelHistory = (item, state) =>
  el(
    "section",
    { class: "history" },
    el("h2", {}, "History"),
    item.history.length
      ? el("ol", {}, item.history.map((event) => historyEntry(event, state)))
      : el("p", { class: "none" }, "Nobody has labelled it yet."),
  )
