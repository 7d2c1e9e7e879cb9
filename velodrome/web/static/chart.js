// A chart in a card: drawn by Vega-Lite without eval, updated in place, with its numbers as a table and as files.
import { look, vega } from "./api.js";
import { h, table } from "./dom.js";
import { digits } from "./words.js";

const ROWS = 100; // of the table below a chart; the CSV has all
const drawn = new Set();
export const redraw = () => drawn.forEach((chart) => chart.again());

const isDark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

// Some colours are too dim on a dark page.
function shaded(spec, themes, dark) {
  if (!dark) return spec;
  return JSON.parse(Object.entries(themes.night).reduce((text, [day, night]) => text.replaceAll(`"${day}"`, `"${night}"`), JSON.stringify(spec)));
}

export class Chart {
  // `title` names it on the page, `file` in downloads. `rows` of `update` are what the table and the files hold.
  constructor(title, file, signal) {
    this.title = title;
    this.file = file;
    this.box = h("div", { class: "chart", role: "img", "aria-label": title });
    this.caption = h("span", { class: "soft" });
    this.data = h("div");
    const details = h("details", { class: "numbers", ontoggle: () => this.list() }, h("summary", {}, "Numbers"), this.data);
    this.details = details;
    const kinds = [["PNG", () => this.picture("png")], ["SVG", () => this.picture("svg")], ["CSV", () => this.csv()], ["JSON", () => this.json()]];
    const buttons = kinds.map(([kind, make]) => h("button", { type: "button", class: "plain", "aria-label": `Download ${title} as ${kind}`, onclick: make }, kind));
    this.element = h("figure", { class: "card" }, h("figcaption", {}, h("h2", {}, title), this.caption), this.box, h("div", { class: "tools" }, details, h("span", { class: "downloads" }, buttons)));
    drawn.add(this);
    signal?.addEventListener("abort", () => { drawn.delete(this); this.view?.finalize(); this.gone = true; });
  }

  // spec: Vega-Lite whose data are named; datasets: their rows by name. Only when the spec differs is it drawn anew.
  async update({ spec, datasets, rows, about, caption }) {
    Object.assign(this, { spec, datasets, rows });
    this.box.setAttribute("aria-label", `${this.title}. ${about ?? ""}`);
    this.caption.textContent = caption ?? "";
    if (this.details.open) this.list();
    const key = JSON.stringify([spec, isDark()]);
    if (this.key === key && this.view) {
      for (const [name, values] of Object.entries(datasets)) this.view.view.data(name, values);
      await this.view.view.runAsync();
      return;
    }
    this.key = key;
    const [embed, themes] = await Promise.all([vega(), look()]);
    if (this.gone || this.key !== key) return;
    const view = await this.embed(embed, themes, this.box, isDark(), "container");
    if (this.key === key && !this.gone) { this.view?.finalize(); this.view = view; } else view.finalize();
  }

  again() {
    if (this.spec) this.update({ spec: this.spec, datasets: this.datasets, rows: this.rows, caption: this.caption.textContent });
  }

  embed(embed, themes, box, dark, width) {
    const config = { ...themes[dark ? "dark" : "light"], ...(box === this.box ? {} : { background: "white" }) };
    const wide = { ...shaded(this.spec, themes, dark), $schema: themes.schema, datasets: this.datasets, width, autosize: { type: "fit-x", contains: "padding" } };
    return embed(box, wide, { ast: true, renderer: "canvas", actions: false, defaultStyle: false, config, tooltip: { theme: dark ? "dark" : "light", disableDefaultStyle: true } });
  }

  list() {
    if (!this.details.open || !this.rows) return;
    const names = Object.keys(this.rows[0] ?? {});
    const cells = this.rows.slice(0, ROWS).map((row) => names.map((name) => (typeof row[name] === "number" ? digits(row[name]) : String(row[name] ?? "—"))));
    const rest = this.rows.length > ROWS ? h("p", { class: "soft" }, `The first ${ROWS} of ${this.rows.length} rows; the CSV has all.`) : null;
    this.data.replaceChildren(...[names.length ? table(`${this.title}: numbers`, names, cells) : h("p", { class: "soft" }, "Nothing yet."), rest].filter(Boolean));
  }

  // Files are light on white, whatever the page is: they go into papers and chats.
  async picture(kind) {
    const [embed, themes] = await Promise.all([vega(), look()]);
    const view = await this.embed(embed, themes, document.createElement("div"), false, 720);
    if (kind === "svg") save(new Blob([await view.view.toSVG()], { type: "image/svg+xml" }), `${this.file}.svg`);
    else (await view.view.toCanvas(2)).toBlob((blob) => save(blob, `${this.file}.png`));
    view.finalize();
  }

  csv() {
    const names = Object.keys(this.rows?.[0] ?? {});
    const cell = (value) => (value === null || value === undefined ? "" : /[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
    const lines = [names, ...(this.rows ?? []).map((row) => names.map((name) => row[name]))].map((line) => line.map(cell).join(","));
    save(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }), `${this.file}.csv`);
  }

  json() {
    save(new Blob([`${JSON.stringify(this.rows ?? [], null, 1)}\n`], { type: "application/json" }), `${this.file}.json`);
  }
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name.replace(/[^\w.-]+/g, "-") }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
