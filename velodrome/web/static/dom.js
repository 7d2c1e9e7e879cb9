// Elements without a framework. Text only ever enters as text nodes, so nothing that a run's recipe holds can become markup.

export function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Fills `box` anew only when what it shows has changed, so that focus and selections survive an update that changes nothing.
const shown = new WeakMap();
export function fill(box, value, make) {
  const text = JSON.stringify(value);
  if (shown.get(box) === text) return;
  shown.set(box, text);
  const focused = box.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const open = new Set([...box.querySelectorAll("details[open]")].map((d) => d.dataset.key));
  box.replaceChildren(...[make(value)].flat().filter(Boolean));
  for (const details of box.querySelectorAll("details")) if (open.has(details.dataset.key)) details.open = true;
  if (focused) box.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

// A table with a caption for screen readers, in a region that scrolls and can be reached by keyboard.
export function table(caption, head, rows, kind = "") {
  const cells = head.map((cell) => (cell instanceof Node ? cell : h("th", { scope: "col" }, cell)));
  const body = rows.map((row) => (row instanceof Node ? row : h("tr", {}, row.map((cell) => (cell instanceof Node && /^T[DH]$/.test(cell.tagName) ? cell : h("td", {}, cell ?? ""))))));
  const inner = h("table", { class: kind }, h("caption", { class: "unseen" }, caption), h("thead", {}, h("tr", {}, cells)), h("tbody", {}, body));
  return h("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" }, inner);
}

export function select(label, name, options, chosen, change) {
  const items = options.map(([value, text]) => h("option", { value, selected: value === chosen }, text));
  return h("label", { class: "field" }, h("span", {}, label), h("select", { name, "data-key": name, onchange: (event) => change(event.target.value) }, items));
}

let last = -Infinity;
export function say(text) {
  // A screen reader that is told every row says nothing else any more.
  if (performance.now() - last < 5000) return;
  last = performance.now();
  document.getElementById("said").textContent = text;
}
