// Moving between features without asking the server, and the outbox that keeps labels until the server has them.
const AHEAD = 24 // each answer costs the browser a moment: seldom and plenty, rather than often
const BEHIND = 6
const LOW = 8
const PATIENCE_MS = 5000
const USER = "almanac.user"
const OUTBOX = "almanac.outbox"

// Private windows may keep nothing: then it is asked, or typed, again.
const remembered = (storage, name) => {
  try {
    return window[storage].getItem(name)
  } catch {
    return null
  }
}
const remember = (storage, name, value) => {
  try {
    if (value === null) window[storage].removeItem(name)
    else window[storage].setItem(name, value)
  } catch { /* see above */ }
}
const keepOutbox = (state) =>
  remember("sessionStorage", OUTBOX, state.outbox.size ? JSON.stringify([...state.outbox.values()]) : null)

const newState = (component) => {
  const state = {
    component, visit: null, at: 0, isWide: false, author: "", tags: [], items: new Map(), order: new Map(), total: 0,
    drafts: new Map(), outbox: new Map(), done: [], problem: null, asked: 0, waiting: null, drawn: null,
    place: null, shown: null,
  }
  return Object.assign(state, {
    feature: () => state.order.get(state.at),
    widen: () => ((state.isWide = !state.isWide), drawCard(state)),
    move: (step) => moveTo(state, state.at + step),
    open: (feature) => openFeature(state, feature),
    save: (item, draft, isNext) => save(state, item, draft, isNext),
    undo: (id, of) => undo(state, id, of),
    undoLast: () => undoLast(state),
    rename: (name) => rename(state, name),
  })
}

const moveTo = (state, at, isJump = false) => {
  if (at < 0 || at >= state.total || !state.order.has(at)) return
  state.at = at
  const address = new URL(location.href)
  address.searchParams.set("feature", state.feature())
  if (isJump) history.pushState(history.state, "", address)
  else history.replaceState(history.state, "", address)
  draw(state)
  fetchMore(state)
}

const openFeature = (state, feature) => {
  for (const [at, known] of state.order) if (known === feature) return moveTo(state, at, true)
  ask(state, { open: feature })
}

const save = (state, item, draft, isNext) => {
  if (!draft.text.trim()) {
    state.problem = "The label is empty: write what the feature is about."
    drawStatus(state)
    return
  }
  const id = newId()
  state.outbox.set(id, {
    id, sae: state.sae, feature: item.feature, author: state.author, text: draft.text, note: draft.note, confidence: draft.confidence,
    safety: draft.safety, based_on: draft.basedOn, seconds: Math.round((Date.now() - draft.since) / 100) / 10,
    tags: draft.tags.split(",").map((tag) => tag.trim()).filter(Boolean),
  })
  state.done.push({ id, feature: item.feature, at: state.at, author: state.author })
  draft.savedAs = id
  state.problem = null
  ask(state, {})
  if (isNext && state.order.has(state.at + 1)) state.move(1)
  else draw(state)
}

const undo = (state, undoes, of) => {
  const id = newId()
  state.outbox.set(id, { id, sae: state.sae, undoes, author: of.author, feature: of.feature ?? state.feature() })
  state.done = state.done.filter((act) => act.id !== undoes)
  ask(state, {})
}

const undoLast = (state) => {
  const last = state.done.pop()
  if (!last) return
  if (state.order.get(last.at) === last.feature) moveTo(state, last.at)
  undo(state, last.id, last)
}

const rename = (state, name) => {
  state.author = name.trim() || state.component.data.author
  remember("localStorage", USER, state.author === state.component.data.author ? null : state.author)
  draw(state)
}

const missing = (state, behind, ahead) => {
  const found = []
  for (let at = state.at - behind; at <= state.at + ahead; at++) {
    const feature = state.order.get(at)
    if (feature !== undefined && !state.items.has(feature)) found.push(feature)
  }
  return found
}

const fetchMore = (state) => {
  const isOrderShort = [state.at + AHEAD, state.at - BEHIND].some((at) => at >= 0 && at < state.total && !state.order.has(at))
  if (missing(state, 2, LOW).length || isOrderShort) ask(state, {})
}

// One request at a time: the server answers the last one it saw, and the outbox goes with every request.
const ask = (state, extra) => {
  keepOutbox(state)
  if (state.waiting && !("open" in extra)) {
    state.waiting.isMoreWanted = true
    drawStatus(state)
    return
  }
  clearTimeout(state.waiting?.timer)
  const number = ++state.asked
  const timer = setTimeout(() => ((state.waiting = null), ask(state, extra)), PATIENCE_MS)
  state.waiting = { number, timer, isMoreWanted: false }
  const need = [...new Set([...missing(state, BEHIND, AHEAD)])]
  const outbox = [...state.outbox.values()]
  state.component.setTriggerValue("ask", { number, at: state.at, feature: state.feature(), need, outbox, ...extra })
  drawStatus(state)
}

const receive = (state, data) => {
  for (const item of data.items) state.items.set(item.feature, item)
  if (state.visit !== data.visit) arrive(state, data)
  data.order.forEach((feature, index) => state.order.set(data.offset + index, feature))
  state.tags = data.tags ?? state.tags
  for (const [id, problem] of Object.entries(data.answers)) settle(state, id, problem)
  if (state.waiting && data.reply >= state.waiting.number) {
    const { timer, isMoreWanted } = state.waiting
    clearTimeout(timer)
    state.waiting = null
    if (isMoreWanted || state.outbox.size) ask(state, {})
  }
}

const arrive = (state, data) => {
  Object.assign(state, { visit: data.visit, at: data.start, total: data.total, order: new Map(), drawn: null })
  if (state.sae !== data.sae) Object.assign(state, { sae: data.sae, drafts: new Map(), items: new Map() })
  for (const item of data.items) state.items.set(item.feature, item)
}

const settle = (state, id, problem) => {
  const act = state.outbox.get(id)
  if (!act) return
  state.outbox.delete(id)
  keepOutbox(state)
  if (!problem) {
    if (state.drafts.get(act.feature)?.savedAs === id) state.drafts.delete(act.feature) // now the label itself is shown
    return
  }
  state.done = state.done.filter((other) => other.id !== id)
  state.problem = `Not saved (feature ${act.feature}): ${problem}`
}

const drawCard = (state) => {
  const item = state.items.get(state.feature())
  state.main.replaceChildren(...(item ? card(item, state).flat(Infinity) : [el("p", { class: "none" }, "loading…")]))
  state.root.dataset.feature = item ? state.feature() : ""
}

const drawForm = (state) => {
  const item = state.items.get(state.feature())
  const draft = item && state.drafts.get(item.feature)
  const { drawn, author } = state
  const isSameForm = drawn?.feature === item?.feature && drawn?.author === author && (draft?.isTouched || drawn?.item === item)
  if (!item) state.form.replaceChildren()
  else if (!isSameForm || !draft) state.form.replaceChildren(labelForm(item, state))
  if (drawn?.item !== item || drawn?.author !== author) state.past.replaceChildren(...(item ? [labelHistory(item, state)] : []))
  state.drawn = { item, feature: item?.feature, author }
  const undoButton = state.form.querySelector("[data-act=undo-last]")
  if (undoButton) undoButton.disabled = state.done.length === 0
}

const drawStatus = (state) => {
  const pending = state.outbox.size
  state.status.textContent = state.problem ?? (pending ? "saving…" : state.done.length ? `${state.done.length} saved` : "")
  state.status.className = `status ${state.problem ? "problem" : ""}`
  state.root.dataset.pending = pending
}

const drawBar = (state) => {
  const go = el("input", { name: "go", inputmode: "numeric", "aria-label": "feature number" })
  go.value = state.feature() ?? ""
  go.addEventListener("change", () => /^\d+$/.test(go.value.trim()) && state.open(Number(go.value)))
  const { data } = state.component
  state.bar.replaceChildren(
    button("‹", "previous feature (←, k)", () => state.move(-1), { disabled: state.at === 0, "data-act": "previous" }),
    go,
    button("›", "next feature (→, j)", () => state.move(1), { disabled: state.at + 1 >= state.total, "data-act": "next" }),
    el("span", { class: "place" }, `${(state.at + 1).toLocaleString("en")} of ${state.total.toLocaleString("en")} ${data.list}`),
    el("span", { class: "sae", title: data.sae }, data.shown_sae),
  )
}

// What did not change is left alone: answers of the server come while people read and type.
const draw = (state) => {
  const item = state.items.get(state.feature())
  const place = `${state.visit} ${state.at} ${state.total}`
  if (state.place !== place) drawBar(state)
  if (state.shown !== item || !item) drawCard(state)
  drawForm(state)
  drawStatus(state)
  Object.assign(state, { place, shown: item })
}

const onKey = (state) => (event) => {
  const target = event.composedPath()[0]
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|TEXTAREA|SELECT/.test(target.tagName ?? "") || target.isContentEditable) return
  const act = {
    ArrowRight: () => state.move(1), j: () => state.move(1), ArrowLeft: () => state.move(-1), k: () => state.move(-1),
    u: state.undoLast, m: state.widen, w: () => state.form.querySelector("textarea")?.focus(),
  }[event.key]
  if (!act) return
  event.preventDefault()
  act()
}

const onBack = (state) => () => {
  const feature = Number(new URL(location.href).searchParams.get("feature"))
  for (const [at, known] of state.order) {
    if (known === feature) {
      state.at = at
      draw(state)
    }
  }
}

const mount = (component) => {
  const state = newState(component)
  state.root = component.parentElement.querySelector(".almanac")
  for (const name of ["bar", "main", "form", "past", "status"]) state[name] = state.root.querySelector(`.${name}`)
  state.listeners = { keydown: onKey(state), popstate: onBack(state) }
  for (const [name, listener] of Object.entries(state.listeners)) window.addEventListener(name, listener)
  state.author = remembered("localStorage", USER) ?? component.data.author
  for (const act of JSON.parse(remembered("sessionStorage", OUTBOX) ?? "[]")) state.outbox.set(act.id, act)
  return state
}

// Runs again at every change of the data; the clean-up only when the page is left.
export default function (component) {
  const { parentElement, data } = component
  const isNew = !parentElement.almanac
  const state = (parentElement.almanac ??= mount(component))
  state.component = component
  receive(state, data)
  draw(state)
  if (isNew && state.outbox.size) ask(state, {})
  else if (isNew || missing(state, 2, LOW).length) fetchMore(state)
  return () => {
    for (const [name, listener] of Object.entries(state.listeners)) window.removeEventListener(name, listener)
    clearTimeout(state.waiting?.timer)
    delete parentElement.almanac
  }
}
