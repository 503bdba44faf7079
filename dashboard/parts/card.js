// One feature: its name, its numbers, its tokens, its examples, its neighbours.
const SHOWN = { top: 8, q5: 4, q4: 3, q3: 3, q2: 3, q1: 4, random: 3, near_miss: 4, negative: 2 }

const cardHead = (item) =>
  el(
    "header",
    { class: "head" },
    el("h1", { class: item.name ? "" : "unnamed" }, item.name || "no name yet"),
    el(
      "div",
      { class: "chips" },
      el("span", { class: `chip ${item.status}` }, item.status),
      item.source ? el("span", { class: "chip" }, item.source) : null,
      item.authors > 1 ? el("span", { class: `chip ${item.agreement}` }, `${item.authors} people: ${item.agreement}`) : null,
      item.safety ? el("span", { class: "chip safety" }, `safety ${item.safety}`) : null,
      item.tags.map((tag) => el("span", { class: "chip tag" }, tag)),
    ),
    item.source === "a person's label" && item.explanation
      ? el("p", { class: "explanation" }, `machine: ${item.explanation}`)
      : null,
  )

const cardProperties = (item) =>
  el(
    "dl",
    { class: "properties" },
    item.properties.map((property) =>
      el(
        "div",
        { title: property.meaning },
        el("dt", {}, property.name),
        el("dd", {}, property.value, " ", el("small", {}, property.unit)),
        el("dd", { class: "note" }, property.note),
      ),
    ),
  )

const HEIGHT = 74
const cardHistogram = (histogram) => {
  if (!histogram) return el("section", { class: "list histogram" }, el("h2", {}, "Activations"), el("p", { class: "none" }, "it never fires"))
  const highest = Math.max(...histogram.counts.map(Math.log1p), 1)
  const width = 100 / histogram.counts.length
  const bars = histogram.counts.map((count, bin) => {
    const height = (Math.log1p(count) / highest) * HEIGHT
    const bar = { x: bin * width, y: HEIGHT - height, width: width * 0.86, height }
    return svg("rect", bar, svg("title", {}, histogram.titles[bin]))
  })
  const picture = { viewBox: `0 0 100 ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": "histogram of activations" }
  return el(
    "section",
    { class: "list histogram" },
    el("h2", {}, "Activations ", el("small", {}, "log counts")),
    svg("svg", picture, bars),
    el("div", { class: "axis" }, el("span", {}, histogram.low), el("span", {}, histogram.high)),
  )
}

const cardList = (list, most) =>
  el(
    "section",
    { class: `list ${list.title.toLowerCase().replace(" ", "-")}` },
    el("h2", {}, list.title),
    list.rows.length ? null : el("p", { class: "none" }, "–"),
    el(
      "ul",
      {},
      list.rows.slice(0, most).map((row) =>
        el(
          "li",
          {},
          el("span", { class: "bar", style: `width:${(row.part * 100).toFixed(0)}%` }),
          el("code", { title: row.token }, row.token),
          el("span", { class: "value" }, row.shown),
        ),
      ),
    ),
  )

const exampleLine = (row) =>
  el(
    "li",
    { title: row.where },
    el("span", { class: "value" }, row.act),
    el(
      "span",
      { class: "window" },
      row.segments.map(([text, level, act, isCenter]) =>
        level === undefined
          ? text
          : el("mark", { class: `${level >= 0 ? `a${level}` : ""} ${isCenter ? "center" : ""}`, title: act }, text),
      ),
    ),
  )

const cardBuckets = (item, state) =>
  item.buckets.map((bucket) => {
    const limit = state.isWide ? bucket.rows.length : (SHOWN[bucket.bucket] ?? 3)
    return el(
      "section",
      { class: "bucket", "data-bucket": bucket.bucket },
      el("h2", {}, bucket.title, " ", el("small", {}, bucket.bounds)),
      el("ul", { class: "examples" }, bucket.rows.slice(0, limit).map(exampleLine)),
    )
  })

const cardNeighbors = (item, state) =>
  item.neighbors.map((kind) =>
    el(
      "section",
      { class: "list neighbors" },
      el("h2", {}, "Neighbours ", el("small", {}, kind.title)),
      el(
        "ul",
        {},
        kind.rows.map((near) =>
          el(
            "li",
            {},
            near.sae
              ? el("span", { title: near.sae }, `${near.sae} ${near.feature}`)
              : button(`${near.feature}`, "open this feature", () => state.open(near.feature), { class: "link" }),
            near.is_named ? el("span", { class: "name" }, near.name) : el("code", { class: "name" }, near.name),
            el("span", { class: "value" }, near.score),
          ),
        ),
      ),
    ),
  )

const card = (item, state) => {
  const [promotes, suppresses, firesOn, after, before] = item.lists
  return [
    cardHead(item),
    cardProperties(item),
    el("div", { class: "row" }, cardHistogram(item.histogram), cardList(firesOn, 5), cardList(promotes, 5), cardList(suppresses, 5)),
    item.buckets.length
      ? button(state.isWide ? "fewer examples" : "all examples", "more or fewer examples (m)", state.widen, { class: "link widen" })
      : el("p", { class: "none" }, "There are no examples: the feature did not fire on the catalog's corpus."),
    cardBuckets(item, state),
    el("div", { class: "row lower" }, cardNeighbors(item, state), cardList(after, 8), cardList(before, 8), cardList({ ...firesOn, title: "Fires on, more" , rows: firesOn.rows.slice(5) }, 8)),
  ]
}
