// Which runs are drawn, where one looks, and keeping up with a run that is going on. The lines are in panel.js.
const DASHES = [null, "5 3", "1.5 3"]
const COLORS = ["#4f4fc4", "#d9730d", "#0f8b6d", "#b83280", "#7a7a8c", "#2b7fb8"]

const newState = (component) => {
  const state = { component, runs: [], points: {}, chosen: [], slots: new Map(), at: null, under: null, lit: null, asked: 0, panels: [], cards: [], rows: new Map(), listed: null, scale: "log", most: 1 }
  return Object.assign(state, {
    color: (id) => state.colors[(state.slots.get(id) ?? 0) % state.colors.length],
    dash: (id) => DASHES[Math.floor((state.slots.get(id) ?? 0) / state.colors.length) % DASHES.length],
    stroke: (id) => ({ stroke: state.color(id), "stroke-dasharray": state.dash(id) }),
    swatch: (id) => el("i", { class: state.dash(id) ? "swatch dashed" : "swatch", style: `--own: ${state.color(id)}` }),
    dim: (id) => (state.lit !== null && state.lit !== id ? "dim" : null),
    short: (run) => shortName(state, run),
    look: (share, under = null) => look(state, share === null ? null : share * state.span, under),
    walk: (step, under) => walk(state, step, under),
    light: (id) => light(state, id),
    toggle: (id) => toggle(state, id),
    choose: (ids) => choose(state, ids),
    rescale: (scale) => { state.scale = scale; ask(state); draw(state) },
  })
}

// What was not published has no name: then what it is stands for it.
const named = (run) => (run.name === run.id ? [detailOf(run), run.id].filter(Boolean).join(" · ") : run.name)

// Of names that begin alike only the rest tells them apart.
const shortName = (state, run) => {
  const names = state.drawnRuns.map((one) => one.name)
  let shared = 0
  while (names.length > 1 && names.every((name) => name[shared] !== undefined && name[shared] === names[0][shared])) shared++
  const cut = run.name.lastIndexOf("/", shared) + 1
  return run.name === run.id ? named(run) : run.name.slice(cut)
}

const toggle = (state, id) => {
  const isChosen = state.chosen.includes(id)
  const wanted = isChosen ? state.chosen.filter((one) => one !== id) : [...state.chosen, id]
  if (wanted.length && wanted.length <= state.most) choose(state, wanted)
}

const choose = (state, ids) => {
  if (ids.length) state.chosen = [...ids]
  ask(state, ids)
  draw(state)
}

const ask = (state, chosen = state.chosen) => {
  state.asked = Math.max(Date.now(), state.asked + 1)
  state.component.setTriggerValue("ask", { number: state.asked, chosen, scale: state.scale })
}

const light = (state, id) => {
  state.lit = state.chosen.includes(id) ? id : null
  for (const path of state.root.querySelectorAll("path[data-run]")) path.classList.toggle("dim", state.lit !== null && path.dataset.run !== state.lit)
}

const look = (state, at, under) => {
  state.at = at === null ? null : Math.min(Math.max(at, 0), state.span)
  state.under = under
  mark(state)
}

// From point to point, of the run that has the most of them.
const walk = (state, step, under) => {
  const longest = state.drawnRuns.map((run) => state.points[run.id].tokens).sort((a, b) => b.length - a.length)[0]
  if (!longest?.length) return
  const from = state.at === null ? (step > 0 ? -1 : longest.length) : pointAt(longest, state.at)
  look(state, longest[Math.min(Math.max(from + step, 0), longest.length - 1)], under)
}

const mark = (state) => {
  for (const drawn of state.panels) markPanel(state, drawn)
  if (!state.isSmall) markList(state)
}

// A run keeps its colour as long as it is drawn; the first that is free goes to the next.
const giveColors = (state) => {
  for (const id of [...state.slots.keys()]) if (!state.chosen.includes(id)) state.slots.delete(id)
  for (const id of state.chosen) {
    if (state.slots.has(id)) continue
    const taken = new Set(state.slots.values())
    let slot = 0
    while (taken.has(slot)) slot++
    state.slots.set(id, slot)
  }
}

const themeColors = (root) => {
  const given = getComputedStyle(root).getPropertyValue("--st-chart-categorical-colors").split(",").map((color) => color.trim()).filter(Boolean)
  return given.length ? given.slice(0, COLORS.length) : COLORS
}

const draw = (state) => {
  state.colors = themeColors(state.root)
  giveColors(state)
  state.drawnRuns = state.runs.filter((run) => state.chosen.includes(run.id) && state.points[run.id]?.tokens.length)
  const points = state.drawnRuns.map((run) => state.points[run.id])
  state.span = Math.max(1, ...points.map((own) => own.tokens.at(-1)))
  state.x = linear(0, state.span, 4)
  state.root.classList.toggle("small", state.isSmall)
  if (state.isSmall) drawKey(state)
  else {
    drawLive(state)
    drawList(state)
    drawTools(state)
    tick(state)
  }
  drawPanels(state, panelsFor(points, state.only))
  state.root.dataset.points = points.reduce((sum, own) => sum + own.tokens.length, 0)
}

// Panels that stay are kept as they are: the pointer may be in one of them.
const drawPanels = (state, wanted) => {
  const known = new Map(state.panels.map((drawn) => [drawn.panel.key, drawn]))
  const shown = state.drawnRuns.length ? wanted : []
  state.panels = shown.map((panel) => known.get(panel.key) ?? newPanel(state, panel))
  const nodes = state.panels.map((drawn) => drawn.node)
  const isSame = nodes.length === state.parts.panels.childElementCount && nodes.every((node, at) => node === state.parts.panels.children[at])
  if (!isSame) state.parts.panels.replaceChildren(...nodes)
  if (!nodes.length) state.parts.panels.replaceChildren(el("p", { class: "note" }, "The curves begin with the first points, which a run writes with its checkpoints."))
  for (const drawn of state.panels) drawPanel(state, drawn)
}

const receive = (state, data) => {
  state.runs = data.runs
  state.points = { ...state.points, ...data.points }
  state.ahead = data.now - Date.now()
  state.only = data.panels
  state.isSmall = data.panels.length > 0
  state.most = data.most
  if ((data.reply ?? 0) < state.asked) return // an answer to an earlier question: what was clicked since stays
  state.chosen = data.chosen
  state.scale = data.scale ?? "log"
}

const mount = (component) => {
  const state = newState(component)
  state.root = component.parentElement.querySelector(".curves")
  state.parts = Object.fromEntries(["live", "list", "tools", "panels"].map((name) => [name, state.root.querySelector(`.${name}`)]))
  state.timer = setInterval(() => tick(state), 1000)
  return state
}

// Runs again at every change of the data; the clean-up only when the page is left.
export default function (component) {
  const { parentElement, data } = component
  const state = (parentElement.almanacCurves ??= mount(component))
  state.component = component
  receive(state, data)
  draw(state)
  return () => {
    clearInterval(state.timer)
    delete parentElement.almanacCurves
  }
}
