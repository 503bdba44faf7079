// Numbers as people read them, and from numbers to places on a panel: shares of its width and height.
const isNumber = (value) => typeof value === "number" && Number.isFinite(value)
const trim = (text) => (text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text)

const shownNumber = (value) => {
  if (!isNumber(value)) return "–"
  const size = Math.abs(value)
  if (size >= 1000 && size < 1e9) return Math.round(value).toLocaleString("en-US")
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e")
  return trim(value.toPrecision(3))
}
const shownShort = (value) => {
  if (!isNumber(value)) return "–"
  for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= unit) return trim((value / unit).toPrecision(3)) + letter
  }
  return shownNumber(value)
}
const shownShare = (value) => (isNumber(value) ? `${trim((value * 100).toPrecision(value > 0 && value < 0.1 ? 2 : 3))} %` : "–")
const shownSpan = (seconds) => {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`
  if (seconds < 129600) return `${trim((seconds / 3600).toPrecision(2))} h`
  return `${Math.round(seconds / 86400)} d`
}

// A scale: value -> share of the length, 0 at the low end; and the ticks on it.
const linear = (low, high, wanted) => {
  const span = high - low || Math.abs(high) || 1
  const rough = span / wanted
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999)
  const ticks = []
  for (let at = Math.ceil(low / step - 1e-9); at * step <= low + span * 1.0001; at++) ticks.push(at * step)
  return { place: (value) => (value - low) / span, ticks }
}

const logarithmic = (low, high) => {
  const from = Math.log10(low), span = Math.log10(high) - from || 1
  const within = (factors) => {
    const found = []
    for (let power = Math.floor(from) - 1; power <= Math.ceil(from + span); power++) {
      for (const factor of factors) if (factor * 10 ** power >= low * 0.999 && factor * 10 ** power <= high * 1.001) found.push(factor * 10 ** power)
    }
    return found
  }
  const sets = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]].map(within)
  return { place: (value) => (Math.log10(value) - from) / span, ticks: sets.find((set) => set.length >= 3) ?? linear(low, high, 4).ticks }
}

// The scale that holds every number of a panel. Where there is nothing above zero, a logarithm makes no sense.
const scaleOf = (values, isLog) => {
  const numbers = values.filter(isNumber)
  const above = numbers.filter((value) => value > 0)
  if (isLog && above.length) {
    const low = above.reduce((a, b) => Math.min(a, b)), high = above.reduce((a, b) => Math.max(a, b))
    return { isLog: true, ...logarithmic(low / (low === high ? 2 : 1.08), high * (low === high ? 2 : 1.08)) }
  }
  const low = numbers.reduce((a, b) => Math.min(a, b), 0), high = numbers.reduce((a, b) => Math.max(a, b), 0)
  return { isLog: false, ...linear(low, high === low ? 1 : low + (high - low) * 1.06, 3) }
}

// The point at or before a place on the axis, by halving.
const pointAt = (tokens, at) => {
  let low = 0, high = tokens.length - 1
  if (high < 0) return -1
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if (tokens[middle] <= at) low = middle
    else high = middle - 1
  }
  return low + 1 < tokens.length && Math.abs(tokens[low + 1] - at) < Math.abs(tokens[low] - at) ? low + 1 : low
}
