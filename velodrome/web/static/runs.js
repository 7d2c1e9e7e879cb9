// The table of runs: searched, filtered and sorted by the server, a page of a hundred at a time, so that five thousand cost what one hundred do.
import { change, link, state } from "./address.js";
import { get } from "./api.js";
import { fill, h, select, table } from "./dom.js";
import { clock, count, digits, seconds } from "./words.js";

export const TOGETHER = 24; // runs in one comparison
const HEADS = [["name", "run"], ["state", "state"], ["workload", "workload"], ["algorithm", "algorithm"], ["seed", "seed"], ["step", "step"], ["valid", "last value"], ["best", "best"], ["seconds", "time"], ["changed", "changed"]];
export const chosen = (asked) => (asked.ids ?? "").split(",").filter(Boolean);

export function badge(name) {
  return h("span", { class: `state ${["running", "quiet", "finished", "diverged", "failed"].includes(name) ? name : "finished"}` }, name);
}

function toggle(id, on) {
  const ids = chosen(state()).filter((other) => other !== id);
  change({ ids: (on ? [...ids, id] : ids).slice(-TOGETHER).join(",") });
}

function head(found) {
  const sort = (name) => () => change({ sort: name, order: found.sort === name && found.order === "asc" ? "desc" : "asc", offset: "" });
  return HEADS.map(([name, title]) => {
    const here = found.sort === name;
    return h("th", { scope: "col", "aria-sort": here ? (found.order === "asc" ? "ascending" : "descending") : null }, h("button", { type: "button", class: "sort", "data-key": `sort-${name}`, onclick: sort(name) }, title, h("span", { "aria-hidden": "true" }, here ? (found.order === "asc" ? " ↑" : " ↓") : "")));
  });
}

function row(r, ids) {
  const box = h("input", { type: "checkbox", "data-key": `pick-${r.id}`, "aria-label": `Select ${r.name}`, checked: ids.includes(r.id), onchange: (event) => toggle(r.id, event.target.checked) });
  const hit = r.best !== null && r.target !== null && r.best <= r.target;
  const cells = [
    h("th", { scope: "row" }, h("span", { class: "pick" }, box, h("a", { href: link({ view: "run", id: r.id }), "data-go": true, "data-key": `run-${r.id}` }, r.name))),
    h("td", {}, badge(r.state)),
    h("td", {}, r.workload),
    h("td", {}, r.algorithm),
    h("td", {}, r.seed ?? "—"),
    h("td", {}, r.step === null ? "—" : r.step.toLocaleString("en"), r.steps === null ? "" : h("small", {}, ` / ${r.steps.toLocaleString("en")}`)),
    h("td", {}, digits(r.valid)),
    h("td", { class: hit ? "hit" : null }, digits(r.best), hit ? h("span", { class: "unseen" }, " (target reached)") : ""),
    h("td", {}, seconds(r.seconds)),
    h("td", {}, clock(r.changed)),
  ];
  return h("tr", {}, cells);
}

// Arrow keys move between rows, x selects, Enter opens (the link has the focus), / goes to the search: only inside the table.
function keys(event) {
  const links = [...event.currentTarget.querySelectorAll("tbody a[data-go]")];
  const at = links.indexOf(event.target.closest("tr")?.querySelector("a[data-go]"));
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, j: at + 1, k: at - 1, Home: 0, End: links.length - 1 }[event.key];
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (to !== undefined) { links[Math.max(0, Math.min(links.length - 1, to))]?.focus(); event.preventDefault(); }
  if (event.key === "x" && at >= 0) event.target.closest("tr").querySelector("input").click();
  if (event.key === "/") { document.querySelector("input[type=search]").focus(); event.preventDefault(); }
}

function pages(found) {
  const last = Math.min(found.offset + found.page, found.matching);
  const to = (offset, text, enabled) => h("button", { type: "button", class: "plain", "data-key": text, disabled: !enabled, onclick: () => change({ offset: offset || "" }) }, text);
  const where = found.matching ? `${(found.offset + 1).toLocaleString("en")}–${last.toLocaleString("en")} of ${count(found.matching, "run")}` : "No run matches.";
  return [h("span", { role: "status" }, where), to(Math.max(0, found.offset - found.page), "Previous", found.offset > 0), to(found.offset + found.page, "Next", last < found.matching)];
}

function open(main, signal) {
  let timer = 0, shown = new Set(), whole = false;
  const search = h("input", { type: "search", name: "q", placeholder: "name, workload, algorithm", autocomplete: "off", oninput: (event) => { clearTimeout(timer); timer = setTimeout(() => change({ q: event.target.value, offset: "" }), 150); } });
  search.value = state().q ?? "";
  const filters = h("div", { class: "filters" }), picks = h("div", { class: "picks" }), list = h("div", { onkeydown: keys }), pager = h("div", { class: "pager" });
  main.replaceChildren(h("h1", {}, "Runs"), h("div", { class: "bar" }, h("label", { class: "field grow" }, h("span", {}, "Search"), search), filters), picks, list, pager);
  return {
    async refresh(asked) {
      const found = await get("runs", { q: asked.q, state: asked.state, workload: asked.workload, sort: asked.sort, order: asked.order, offset: asked.offset }, signal);
      const ids = chosen(asked);
      whole = found.matching > found.page || Boolean(asked.q || asked.state || asked.workload);
      shown = new Set(found.runs.map((r) => r.id));
      if (document.activeElement !== search) search.value = asked.q ?? "";
      fill(filters, [found.states, found.workloads, asked.state, asked.workload], () => [
        select("State", "state", [["", `any (${found.total.toLocaleString("en")})`], ...Object.entries(found.states).map(([name, n]) => [name, `${name} (${n.toLocaleString("en")})`])], asked.state ?? "", (value) => change({ state: value, offset: "" })),
        select("Workload", "workload", [["", "any"], ...found.workloads.map((name) => [name, name])], asked.workload ?? "", (value) => change({ workload: value, offset: "" })),
      ]);
      fill(picks, ids, () => (ids.length ? [h("span", {}, `${count(ids.length, "run")} selected`), h("a", { class: "button", href: link({ view: "compare", ids: ids.join(",") }), "data-go": true, "data-key": "compare" }, "Compare"), h("button", { type: "button", class: "plain", onclick: () => change({ ids: "" }) }, "Clear")] : [h("span", { class: "soft" }, "Select runs to compare them. In the table: arrow keys move, x selects, Enter opens, / searches.")]));
      fill(list, [found.runs, found.sort, found.order, ids], () => (found.total ? table("Runs", head(found), found.runs.map((r) => row(r, ids)), "runs") : h("p", {}, found.error || (found.read < found.listed ? "Reading the folder …" : "There are no runs in this folder yet. They appear here as soon as one is started."))));
      fill(pager, [found.offset, found.matching], () => pages(found));
    },
    touched: (message) => whole || message.removed.length > 0 || message.runs.some((r) => shown.has(r.id)) || message.runs.length > 0,
  };
}

export const runs = { key: () => "runs", open };
