// One run: its curves, its recipe, where it ran, what was measured inside it.
import { change, link, state } from "./address.js";
import { get, look } from "./api.js";
import { Chart } from "./chart.js";
import { fill, h, select, table } from "./dom.js";
import { lines } from "./specs.js";
import { badge } from "./runs.js";
import { clock, digits, seconds } from "./words.js";

export const ACROSS = [["t", "steps"], ["examples", "examples"], ["flops", "FLOPs"], ["seconds", "seconds"]];
export const across = (name) => (ACROSS.find(([key]) => key === name) ?? ACROSS[0])[1];

export const leaves = (caption, found) => table(caption, ["name", "value"], Object.entries(found).map(([name, value]) => [h("th", { scope: "row" }, name), h("td", { class: "words" }, value)]), "leaves pairs");

function facts(r) {
  const parts = [badge(r.state), r.workload && `${r.workload} · ${r.algorithm} · seed ${r.seed}`, r.step !== null && `step ${r.step.toLocaleString("en")}${r.steps ? ` of ${r.steps.toLocaleString("en")}` : ""}`, `best ${digits(r.best)}${r.target === null ? "" : `, target ${digits(r.target)}`}`, seconds(r.seconds), `changed ${clock(r.changed)}`];
  return h("p", { class: "facts" }, parts.filter(Boolean).map((part) => h("span", {}, part)));
}

function open(main, signal) {
  const id = state().id;
  const top = h("div"), choice = h("div", { class: "bar" }), watched = h("div"), told = h("div");
  const curve = new Chart("Curve", "curve", signal), reading = new Chart("Reading", "reading", signal);
  main.replaceChildren(top, choice, h("div", { class: "grid one" }, curve.element), watched, told);
  return {
    async refresh(asked) {
      const x = asked.x ?? "t";
      const [found, themes] = await Promise.all([get("run", { id }, signal), look()]);
      const y = asked.y ?? (found.columns.includes("valid") ? "valid" : found.columns.find((name) => name === "loss") ?? found.columns[1] ?? "valid");
      fill(top, [found.run, found.problems], () => [h("p", { class: "kicker" }, h("a", { href: link({ view: "runs" }), "data-go": true }, "Runs")), h("h1", {}, found.run.name), facts(found.run), ...found.problems.map((text) => h("p", { class: "finding sick" }, text))]);
      fill(choice, [found.columns, x, y], () => [select("Column", "y", found.columns.map((name) => [name, name]), y, (value) => change({ y: value })), select("Over", "x", ACROSS, x, (value) => change({ x: value }))]);
      const { curves } = await get("curves", { ids: id, x, y }, signal);
      await curve.update({ ...lines(curves.map((c) => ({ label: y, x: c.x, y: c.y })), { x: across(x), y }, themes, { log: true }), about: `${y} over ${across(x)}, ${curves[0]?.x.length ?? 0} points.`, caption: `${y} over ${across(x)}; ${(curves[0]?.rows ?? 0).toLocaleString("en")} rows recorded.` });
      fill(told, [found.recipe, found.result, found.sessions], () => [
        h("h2", {}, "Recipe"), leaves("Recipe", found.recipe),
        Object.keys(found.result).length ? [h("h2", {}, "Result"), leaves("Result", found.result)] : null,
        h("h2", {}, "Hardware and versions"),
        found.sessions.length ? found.sessions.map((session, i) => [found.sessions.length > 1 ? h("h3", {}, `Session ${i + 1}`) : null, leaves(`Session ${i + 1}`, session)]) : h("p", { class: "soft" }, "Not recorded."),
      ].flat(3));
      if (found.watched) await readings(asked, themes);
    },
    touched: (message) => message.runs.some((r) => r.id === id) || message.removed.includes(id),
  };

  async function readings(asked, themes) {
    const found = await get("readings", { id, name: asked.reading }, signal);
    const pick = (name) => h("button", { type: "button", class: "link", "data-key": `reading-${name}`, "aria-pressed": String(name === found.name), onclick: () => change({ reading: name }) }, name);
    const number = (value) => (value === null || value === undefined ? "—" : digits(value));
    const list = h("div");
    if (!watched.childElementCount) watched.append(h("h2", {}, "Inside"), h("div", { class: "grid one" }, reading.element), list);
    await reading.update({ ...lines([{ label: found.name, x: found.x, y: found.y, low: found.low, high: found.high }], { x: "steps", y: found.unit ? `${found.name} (${found.unit})` : found.name }, themes), about: `${found.name} over steps.`, caption: `${found.name} over steps, with its interval where there is one.` });
    fill(watched.lastElementChild, [found.last, found.name], () => table("Readings", ["reading", "last", "interval", "unit", "step", "note"], found.last.map((r) => [h("th", { scope: "row" }, pick(r.name)), number(r.value), r.low === null || r.low === undefined ? "" : `${number(r.low)} – ${number(r.high)}`, r.unit ?? "", r.step, h("td", { class: "words" }, r.note ?? "")]), "leaves"));
  }
}

export const run = { key: (asked) => `run:${asked.id}`, open };
