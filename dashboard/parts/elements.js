// Everything is drawn with these: no markup is ever parsed, so no text can become an element.
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children)
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children)

const fill = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value)
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""))
  return node
}

const button = (text, title, act, attributes = {}) => {
  const node = el("button", { type: "button", title, ...attributes }, text)
  node.addEventListener("click", act)
  return node
}

const newId = () => crypto.randomUUID?.().replaceAll("-", "") ?? fallbackId()
const fallbackId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("")
