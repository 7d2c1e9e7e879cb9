// Draws the charts of the page: light or dark as the reader prefers, over the cost axis chosen with the buttons, as wide as their card.
(() => {
  const { charts, themes, axes, night } = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const axis = () => document.querySelector("input[name=axis]:checked")?.value;

  function onAxis(node, chosen) {
    if (Array.isArray(node)) return node.map((n) => onAxis(n, chosen));
    if (node === null || typeof node !== "object") return node;
    const copy = {};
    for (const [key, value] of Object.entries(node)) copy[key] = key === "datasets" ? value : onAxis(value, chosen);
    if (copy.x && copy.x.field in axes) copy.x = { ...copy.x, field: chosen, title: axes[chosen].title, axis: { ...copy.x.axis, format: axes[chosen].format } };
    return copy;
  }

  // Some colours are too dim on a dark page.
  function shaded(spec, theme) {
    if (theme !== "dark") return spec;
    return JSON.parse(Object.entries(night).reduce((text, [day, dim]) => text.replaceAll(`"${day}"`, `"${dim}"`), JSON.stringify(spec)));
  }

  const drawn = new Map();
  let latest = 0;
  async function draw() {
    const mine = ++latest; // a later click wins over a drawing still under way
    for (const box of document.querySelectorAll(".chart")) {
      const { spec, switches } = charts[box.id];
      const theme = dark.matches ? "dark" : "light";
      const wide = { ...shaded(switches && axis() ? onAxis(spec, axis()) : spec, theme), width: "container", autosize: { type: "fit-x", contains: "padding" } };
      const actions = { export: true, source: false, compiled: false, editor: false };
      drawn.get(box)?.finalize();
      drawn.set(box, await vegaEmbed(box, wide, { ast: true, renderer: "svg", actions, config: themes[theme], tooltip: { theme } }));
      if (mine !== latest) return;
    }
  }

  dark.addEventListener("change", draw);
  for (const button of document.querySelectorAll("input[name=axis]")) button.addEventListener("change", draw);
  draw();
})();
