// Several runs together: their curves in one chart, and what their recipes do differently.
import { change, link, state } from "./address.js";
import { get, look } from "./api.js";
import { Chart } from "./chart.js";
import { fill, h, select, table } from "./dom.js";
import { lines } from "./specs.js";
import { ACROSS, across } from "./run.js";
import { TOGETHER, chosen } from "./runs.js";
import { count } from "./words.js";

function differences(found, all) {
  const rows = found.rows.filter((row) => all || !row.same);
  if (!rows.length) return h("p", {}, "Nothing: the recipes are the same.");
  const heads = found.runs.map((r) => h("th", { scope: "col" }, h("a", { href: link({ view: "run", id: r.id }), "data-go": true }, r.name)));
  const cells = rows.map((row) => h("tr", { class: row.same ? "same" : null }, h("th", { scope: "row" }, row.name), row.values.map((value) => h("td", { class: value === null ? "soft" : null }, value ?? "absent"))));
  return table("Recipes beside each other", [h("th", { scope: "col" }, "name"), ...heads], cells, "leaves");
}

function open(main, signal) {
  const top = h("div"), choice = h("div", { class: "bar" }), diff = h("div"), chart = new Chart("Curves", "compared", signal);
  const body = h("div", {}, choice, h("div", { class: "grid one" }, chart.element), diff);
  main.replaceChildren(top, body);
  let ids = [];
  return {
    async refresh(asked) {
      ids = chosen(asked);
      body.hidden = !ids.length;
      fill(top, ids.length, () => [h("h1", {}, ids.length ? `${count(ids.length, "run")} compared` : "Compare"), ids.length ? h("p", {}, h("a", { href: link({ view: "runs", ids: ids.join(",") }), "data-go": true }, "Select others")) : h("p", {}, "Select up to ", String(TOGETHER), " runs in ", h("a", { href: link({ view: "runs" }), "data-go": true }, "the table of runs"), ", then press Compare.")]);
      if (!ids.length) return;
      const x = asked.x ?? "t", y = asked.y ?? "valid";
      const [found, recipes, themes] = await Promise.all([get("curves", { ids: asked.ids, x, y }, signal), get("difference", { ids: asked.ids }, signal), look()]);
      fill(choice, [found.columns, x, y], () => [select("Column", "y", found.columns.map((name) => [name, name]), y, (value) => change({ y: value })), select("Over", "x", ACROSS, x, (value) => change({ x: value }))]);
      const series = found.curves.map((c) => ({ label: c.run.name, x: c.x, y: c.y }));
      await chart.update({ ...lines(series, { x: across(x), y }, themes, { log: true }), about: `${y} over ${across(x)} of ${series.map((s) => s.label).join(", ")}.`, caption: `${y} over ${across(x)}.` });
      fill(diff, [recipes.rows, recipes.runs.map((r) => r.id), asked.all], () => [h("h2", {}, "What differs in their recipes"), h("label", { class: "check" }, h("input", { type: "checkbox", "data-key": "all", checked: Boolean(asked.all), onchange: (event) => change({ all: event.target.checked ? "1" : "" }) }), " show what is the same too"), differences(recipes, Boolean(asked.all))]);
    },
    touched: (message) => message.runs.some((r) => ids.includes(r.id)) || message.removed.some((id) => ids.includes(id)),
  };
}

export const compare = { key: () => "compare", open };
