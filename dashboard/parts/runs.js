// The runs: those that are going on, with how far they are; and the list, which is legend, picker and table in one.
const STATES = { running: "training", finished: "finished", failed: "failed", stopped: "stopped" }
const COLUMNS = [
  ["fvu", "FVU", shownNumber], ["loss", "loss", shownNumber], ["l0", "L0", shownNumber],
  ["dead_share", "dead", shownShare], ["tokens_per_second", "tokens/s", shownNumber],
]

const detailOf = (run) => [run.architecture, run.sparsity, run.features ? `${run.features.toLocaleString("en-US")} features` : "", run.site].filter(Boolean).join(" · ")

const agoOf = (state, run) => (run.last === null ? "no point yet" : `${shownSpan((Date.now() + state.ahead - run.last) / 1000)} ago`)

const stepsOf = (run) => {
  if (run.step === null) return ""
  return run.steps ? `step ${run.step.toLocaleString("en-US")} of ${run.steps.toLocaleString("en-US")}` : `step ${run.step.toLocaleString("en-US")}`
}

const leftOf = (run) => {
  const rate = run.values.tokens_per_second
  if (!run.steps || !rate || !run.step) return ""
  const seconds = (run.steps - run.step) * (run.tokens / run.step) / rate
  return seconds > 0 ? `about ${shownSpan(seconds)} left` : ""
}

// Cards and rows stay the same elements while the runs are the same: numbers change in them, and a click finds its row.
const drawLive = (state) => {
  const live = state.runs.filter((run) => run.state === "running")
  const known = new Map(state.cards.map((card) => [card.id, card]))
  state.cards = live.map((run) => known.get(run.id) ?? newCard(run))
  const isSame = known.size === live.length && live.every((run) => known.has(run.id))
  if (!isSame) state.parts.live.replaceChildren(...state.cards.map((card) => card.node))
  for (const [at, run] of live.entries()) fillCard(state, state.cards[at], run)
}

const newCard = (run) => {
  const parts = {
    detail: el("small", { class: "detail" }), rate: el("span"), bar: el("i"), facts: el("span", { class: "facts" }), ago: el("span", { class: "ago" }),
  }
  const node = el("div", { class: "card", "data-live": run.id },
    el("span", { class: "pulse" }), el("b", { class: "name", title: run.name }, run.name), parts.detail,
    el("b", { class: "rate" }, parts.rate, el("small", {}, " tokens/s")), el("div", { class: "gone" }, parts.bar), parts.facts, parts.ago)
  return { id: run.id, node, ...parts }
}

const fillCard = (state, card, run) => {
  card.run = run
  card.detail.textContent = detailOf(run)
  card.rate.textContent = run.values.tokens_per_second ? shownNumber(run.values.tokens_per_second) : "–"
  card.bar.parentElement.classList.toggle("unknown", !run.steps)
  card.bar.style.width = run.steps ? `${Math.min(100, (100 * run.step) / run.steps)}%` : "0"
  card.facts.textContent = [stepsOf(run), run.tokens ? `${shownShort(run.tokens)} tokens` : "", leftOf(run)].filter(Boolean).join(" · ")
}

// The clocks; they go on between two answers of the server.
const tick = (state) => {
  for (const { run, ago } of state.cards) ago.textContent = run.last === null ? "no point yet" : `last point ${agoOf(state, run)}`
  for (const { run, ago } of state.rows.values()) ago.textContent = agoOf(state, run)
}

const drawList = (state) => {
  const fixed = state.runs.map(({ id, name, site, state: how, architecture, sparsity, features }) =>
    [id, name, site, how, architecture, sparsity, features, state.chosen.includes(id) && [state.color(id), state.dash(id)]])
  const signature = JSON.stringify(fixed)
  if (state.listed !== signature) newList(state)
  state.listed = signature
  for (const run of state.runs) state.rows.get(run.id).run = run
  markList(state)
}

const newList = (state) => {
  const head = el("tr", {}, el("th", { class: "text" }, "run"), el("th", { class: "text" }, "architecture"), el("th", {}, "sparsity"), el("th", {}, "features"),
    el("th", { class: "text" }, "state"), el("th", {}, "tokens"), ...COLUMNS.map(([, title]) => el("th", {}, title)), el("th", {}, "last point"))
  const focused = state.parts.list.getRootNode().activeElement?.dataset?.pick
  const kept = state.parts.list.scrollTop
  state.rows = new Map(state.runs.map((run) => [run.id, newRow(state, run)]))
  state.parts.list.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...[...state.rows.values()].map(({ node }) => node))))
  state.parts.list.scrollTop = kept
  if (focused !== undefined) state.rows.get(focused)?.node.querySelector("button").focus()
}

const newRow = (state, run) => {
  const isChosen = state.chosen.includes(run.id)
  const ago = el("td", { class: "soft" }), tokens = el("td"), values = COLUMNS.map(() => el("td"))
  const pick = el("button", { type: "button", class: "pick", "aria-pressed": String(isChosen), "data-pick": run.id, title: run.name },
    isChosen ? state.swatch(run.id) : el("i", { class: "swatch none" }), el("span", {}, run.name), run.site ? el("small", {}, run.site) : null)
  const node = el("tr", { "data-run": run.id, class: isChosen ? "chosen" : "" }, el("td", { class: "text" }, pick), el("td", { class: "text" }, run.architecture),
    el("td", {}, run.sparsity), el("td", {}, run.features ? run.features.toLocaleString("en-US") : "–"),
    el("td", { class: "text" }, el("span", { class: `state ${run.state}` }, STATES[run.state])), tokens, values, ago)
  node.addEventListener("click", () => state.toggle(run.id))
  node.addEventListener("pointerenter", () => state.light(run.id))
  node.addEventListener("pointerleave", () => state.light(null))
  return { node, run, values, tokens, ago }
}

// The numbers where one looks; else the last ones.
const markList = (state) => {
  for (const { run, values, tokens } of state.rows.values()) {
    const own = state.points[run.id]
    const index = state.at === null || !own || !state.chosen.includes(run.id) ? null : pointAt(own.tokens, state.at)
    for (const [number, [key, , show]] of COLUMNS.entries()) values[number].textContent = show(index === null ? run.values[key] : own[key][index])
    tokens.textContent = shownShort(index === null ? run.tokens : own.tokens[index])
  }
  state.parts.list.classList.toggle("looking", state.at !== null)
}

const drawTools = (state) => {
  const linked = (text, title, act) => button(text, title, act, { class: "link" })
  const n = state.runs.length
  state.parts.tools.replaceChildren(
    el("span", { class: "note" }, n > 1 ? `${state.chosen.length} of ${n} runs drawn over the training tokens; click one to add or remove it` : "over the training tokens"),
    ...(n > 1 ? [
      linked(n > state.most ? `first ${state.most}` : "all", "draw them all", () => state.choose(state.runs.slice(0, state.most).map((run) => run.id))),
      linked("the current one", "what is training now, else the newest", () => state.choose([])),
    ] : []),
    el("span", { class: "choice", role: "group", "aria-label": "scale of FVU and loss" }, ...["log", "linear"].map((scale) =>
      button(scale, `FVU and loss on a ${scale} scale`, () => state.rescale(scale), { "aria-pressed": String(state.scale === scale), "data-scale": scale }))),
  )
}

// In the small view: which line is which.
const drawKey = (state) => state.parts.list.replaceChildren(el("p", { class: "key" }, ...state.drawnRuns.map((run) =>
  el("span", { title: detailOf(run) }, state.swatch(run.id), named(run), run.state === "running" ? el("small", {}, " training") : null))))
