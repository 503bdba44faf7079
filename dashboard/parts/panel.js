// One panel: a number over the tokens, one line a run.
const PANELS = [
  { key: "fvu", title: "FVU", note: "variance unexplained, of the batch", isLog: true, show: shownNumber },
  { key: "loss", title: "loss", note: "normalised error", isLog: true, show: shownNumber },
  { key: "l0", title: "L0", note: "features per token", show: shownNumber },
  { key: "dead_share", title: "dead features", note: "share", show: shownShare },
  { key: "learning_rate", title: "learning rate", note: "", show: shownNumber },
  { key: "tokens_per_second", title: "tokens/s", note: "since the point before", show: shownShort },
]

// The terms of the loss that any of these runs has, each a panel of its own, after the loss.
const panelsFor = (points, only) => {
  if (only.length) return PANELS.filter((panel) => only.includes(panel.key))
  const names = [...new Set(points.flatMap((own) => own.terms.map(([name]) => name)))]
  const terms = names.map((name) => ({ key: `term ${name}`, term: name, title: `loss: ${name}`, note: "", isLog: true, show: shownNumber }))
  return [...PANELS.slice(0, 2), ...terms, ...PANELS.slice(2)].filter((panel) =>
    points.some((own) => valuesOf(own, panel).some(isNumber)))
}
const NOTHING = []
const valuesOf = (own, panel) =>
  (panel.term === undefined ? own[panel.key] : own.terms.find(([name]) => name === panel.term)?.[1]) ?? NOTHING

// A gap where there is no number, or none that a logarithm has.
const pathOf = (tokens, values, x, y) => {
  let path = "", isDown = false
  for (const [at, value] of values.entries()) {
    if (!isNumber(value) || (y.isLog && value <= 0)) isDown = false
    else {
      path += `${isDown ? "L" : "M"}${(100 * x.place(tokens[at])).toFixed(2)} ${(100 - 100 * y.place(value)).toFixed(2)}`
      isDown = true
    }
  }
  return path
}

const newPanel = (state, panel) => {
  const plot = el("div", { class: "plot" })
  const latest = el("span", { class: "latest" })
  const tip = el("div", { class: "tip" })
  const node = el("figure", { tabindex: "0", role: "img", "data-panel": panel.key },
    el("figcaption", {}, el("b", {}, panel.title), el("small", {}, panel.note), latest), plot)
  const drawn = { panel, node, plot, latest, tip }
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect()
    state.look((event.clientX - box.left) / box.width, drawn)
  })
  plot.addEventListener("pointerleave", () => state.look(null))
  node.addEventListener("blur", () => state.look(null))
  node.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
    if (event.key === "Escape") state.look(null)
    if (!step) return
    event.preventDefault()
    event.stopPropagation()
    state.walk(step, drawn)
  })
  return drawn
}

const drawPanel = (state, drawn) => {
  const { panel, plot } = drawn
  const own = state.drawnRuns.map((run) => ({ run, points: state.points[run.id], values: valuesOf(state.points[run.id], panel) }))
  const y = scaleOf(own.flatMap(({ values }) => values), panel.isLog && state.scale === "log")
  const lines = own.map(({ run, points, values }) => svg("path", {
    d: pathOf(points.tokens, values, state.x, y), "data-run": run.id, class: state.dim(run.id), ...state.stroke(run.id),
  }))
  const grid = y.ticks.map((tick) => svg("line", { class: "grid", x1: 0, x2: 100, y1: 100 - 100 * y.place(tick), y2: 100 - 100 * y.place(tick) }))
  drawn.dots = own.map(({ run }) => el("i", { class: "dot", style: `--own: ${state.color(run.id)}` }))
  drawn.line = el("i", { class: "cross" })
  Object.assign(drawn, { own, y })
  plot.replaceChildren(
    svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" }, grid, lines),
    ...y.ticks.map((tick) => el("span", { class: "y", style: `bottom: ${100 * y.place(tick)}%` }, panel.show === shownShare ? shownShare(tick) : shownShort(tick))),
    ...state.x.ticks.map((tick) => el("span", { class: "x", style: `left: ${100 * state.x.place(tick)}%` }, shownShort(tick))),
    drawn.line, ...drawn.dots, drawn.tip,
  )
  drawn.node.setAttribute("aria-label", `${panel.title} over training tokens: ` + own.map(({ run, values }) => `${run.name} ${panel.show(values.at(-1))}`).join("; "))
  markPanel(state, drawn)
}

// Where one looks: a line through all panels, a dot on each curve, and in the panel under the pointer what they say.
const markPanel = (state, drawn) => {
  const at = state.at
  const found = drawn.own.map((one) => ({ ...one, index: pointAt(one.points.tokens, at ?? Infinity) }))
  const here = found.length === 1 ? found[0] : null
  drawn.latest.textContent = here ? drawn.panel.show(here.values[here.index]) : ""
  drawn.line.hidden = at === null
  if (at !== null) drawn.line.style.left = `${100 * state.x.place(at)}%`
  for (const [number, { points, values, index }] of found.entries()) {
    const dot = drawn.dots[number], value = values[index]
    dot.hidden = at === null || !isNumber(value) || (drawn.y.isLog && value <= 0) || at > points.tokens.at(-1) * 1.02
    if (dot.hidden) continue
    dot.style.left = `${100 * state.x.place(points.tokens[index])}%`
    dot.style.bottom = `${100 * drawn.y.place(value)}%`
  }
  drawn.tip.hidden = at === null || state.under !== drawn
  if (!drawn.tip.hidden) fillTip(state, drawn, found)
}

const fillTip = (state, drawn, found) => {
  const place = state.x.place(state.at)
  drawn.tip.style.left = place < 0.5 ? `calc(${100 * place}% + 10px)` : "auto"
  drawn.tip.style.right = place < 0.5 ? "auto" : `calc(${100 - 100 * place}% + 10px)`
  const sorted = found.filter(({ points, values, index }) => isNumber(values[index]) && state.at <= points.tokens.at(-1) * 1.02)
    .sort((a, b) => b.values[b.index] - a.values[a.index])
  drawn.tip.replaceChildren(
    el("small", {}, `${shownShort(state.at)} tokens`),
    ...sorted.map(({ run, values, index }) => el("div", {}, state.swatch(run.id), el("span", { class: "of" }, found.length > 1 ? state.short(run) : drawn.panel.title), el("b", {}, drawn.panel.show(values[index])))),
  )
}
