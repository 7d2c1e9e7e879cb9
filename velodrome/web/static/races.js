// Races: the list of workloads, and one race with its leaderboard, curves, speed-ups and how their intervals narrowed.
import { change, link, state } from "./address.js";
import { get, look } from "./api.js";
import { Chart } from "./chart.js";
import { fill, h, select, table } from "./dom.js";
import { bands, intervals, narrowing } from "./specs.js";
import { MISSING, clock, count, digits, median } from "./words.js";

const AXES = [["steps", "steps"], ["examples", "examples"], ["flops", "FLOPs"], ["seconds", "seconds"]];

function list(main, signal) {
  const box = h("div");
  main.replaceChildren(h("h1", {}, "Races"), box);
  return {
    async refresh() {
      const { workloads } = await get("races", {}, signal);
      const rows = workloads.map((w) => [h("th", { scope: "row" }, h("a", { href: link({ view: "race", id: w.id }), "data-go": true, "data-key": w.id }, w.name)), w.algorithms, w.runs.toLocaleString("en"), w.finished.toLocaleString("en"), w.running.toLocaleString("en"), clock(w.changed)]);
      fill(box, workloads, () => (workloads.length ? [workloads.length > 1 ? h("p", {}, h("a", { class: "button", href: link({ view: "race", id: "all" }), "data-go": true, "data-key": "all" }, "Leaderboard over all workloads")) : null, table("Workloads raced on", ["workload", "algorithms", "runs", "finished", "running", "changed"], rows, "plain")] : h("p", {}, "There is no race in this folder yet: velodrome race adamw muon --on digits starts one.")));
    },
    touched: (message) => message.runs.length > 0 || message.removed.length > 0,
  };
}

const verdict = (s) => h("td", { class: ["faster", "slower"].includes(s?.verdict) ? s.verdict : "soft" }, s?.verdict ?? "");

function leaderboard(found, one) {
  const by = new Map((one ? found.cells : found.overall).map((s) => [s.algorithm, s]));
  const order = [...found.algorithms].sort((a, b) => (by.get(b)?.speedup ?? (b === found.reference ? 1 : 0)) - (by.get(a)?.speedup ?? (a === found.reference ? 1 : 0)));
  const name = (a) => h("th", { scope: "row" }, a);
  const speed = (a) => by.get(a)?.text ?? (a === found.reference ? "1 (reference)" : MISSING);
  const hits = (rows) => `${rows.reduce((n, r) => n + r.hits, 0)}/${rows.reduce((n, r) => n + r.trials, 0)}`;
  if (!one) {
    const workloads = [...new Set(found.rows.map((r) => r.workload))].sort();
    const cell = new Map(found.cells.map((s) => [`${s.algorithm}\n${s.workload}`, s]));
    return table("Leaderboard over all workloads", ["algorithm", "speed-up", "verdict", "hits", ...workloads], order.map((a) => [name(a), speed(a), verdict(by.get(a)), hits(found.rows.filter((r) => r.algorithm === a)), ...workloads.map((w) => cell.get(`${a}\n${w}`)?.text ?? (a === found.reference ? "1" : MISSING))]));
  }
  const row = new Map(found.rows.map((r) => [r.algorithm, r]));
  const final = (r) => (r.final_mean === null ? MISSING : digits(r.final_mean) + (r.final_sd === null ? "" : ` ± ${digits(r.final_sd)}`));
  return table("Leaderboard", ["algorithm", "speed-up", "verdict", "hits", ...AXES.map(([, title]) => title), "final metric"], order.map((a) => [name(a), speed(a), verdict(by.get(a)), hits([row.get(a)]), ...AXES.map(([axis]) => median(axis, row.get(a).cost[axis])), final(row.get(a))]));
}

function controls(found, asked) {
  const versions = found.versions.length > 1 ? [select("Version", "version", found.versions.map((v) => [v.id, `code ${v.code}: ${v.finished} of ${count(v.runs, "run")}`]), asked.version ?? found.versions[0].id, (value) => change({ version: value }))] : [];
  const over = found.algorithms.length > 1 ? [select("Reference", "over", found.algorithms.map((a) => [a, a]), found.reference, (value) => change({ over: value }))] : [];
  return [select("Cost", "axis", AXES, found.axis, (value) => change({ axis: value })), ...over, ...versions];
}

function open(main, signal) {
  const id = state().id, one = id !== "all";
  const top = h("div"), bar = h("div", { class: "bar" }), board = h("div"), notes = h("div");
  const curves = new Chart("On the way to the target", "curves", signal), speeds = new Chart("Speed-up", "speedups", signal), narrow = new Chart("How the intervals narrowed", "narrowing", signal);
  main.replaceChildren(top, bar, board, h("div", { class: `grid ${one ? "" : "one"}` }, [one ? curves.element : null, speeds.element, narrow.element]), notes);
  let members = new Set(), workload = "";
  async function draw(found, asked, themes) {
    const drawn = one ? await get("race-curves", { id, axis: found.axis, version: asked.version }, signal) : null;
    const names = [...new Set([...found.algorithms, ...(drawn?.algorithms ?? []).map((a) => a.algorithm)])];
    if (drawn) {
      members = new Set(drawn.algorithms.flatMap((a) => a.seeds.map((s) => s.run)));
      await curves.update({ ...bands(drawn, themes, found.reference || "adamw"), about: `${drawn.metric} of ${count(drawn.algorithms.length, "algorithm")}, median and range over seeds.`, caption: "Bold: median over seeds that have come so far, with a ribbon from lowest to highest. Thin: the first eight seeds. Dashed: the target." });
    }
    const shown = [...(one ? found.cells : found.overall)].sort((a, b) => (b.speedup ?? 0) - (a.speedup ?? 0));
    speeds.element.hidden = !shown.some((s) => s.speedup !== null);
    narrow.element.hidden = !found.narrowing.length;
    if (!speeds.element.hidden) await speeds.update({ ...intervals(shown, names, themes, found), about: shown.map((s) => `${s.algorithm} ${s.text}`).join("; "), caption: "95 % intervals. Right of 1×: faster than the reference. Triangles are bounds, where a run missed its target." });
    if (!narrow.element.hidden) await narrow.update({ ...narrowing(found.narrowing, names, themes, found), about: "95 % intervals from the first 2, 3, … seeds.", caption: "The same interval from the first 2, 3, … seeds. To stop where it looks best is no test: decide the number of seeds beforehand." });
  }
  return {
    async refresh(asked) {
      const [found, themes, { workloads }] = await Promise.all([get("race", { id, axis: asked.axis, over: asked.over, version: asked.version }, signal), look(), get("races", {}, signal)]);
      const about = workloads.find((w) => w.id === id);
      workload = about?.name ?? "";
      fill(top, [found.answer, workload, found.unfinished], () => [h("p", { class: "kicker" }, h("a", { href: link({ view: "races" }), "data-go": true }, "Races"), ` · ${one ? workload : "all workloads"} · ${found.unfinished ? `${count(found.unfinished, "run")} still open` : "all runs finished"}`), h("h1", { class: found.answer.length > 160 ? "long" : null }, found.answer)]);
      fill(bar, [found.axis, found.reference, found.algorithms, found.versions, asked.version], () => [...controls(found, asked), one ? h("a", { class: "button", href: link({ view: "runs", workload }), "data-go": true }, "Its runs") : null].filter(Boolean));
      fill(board, [found.rows, found.cells, found.overall], () => (found.algorithms.length ? leaderboard(found, one) : null));
      fill(notes, found.notes, () => [found.algorithms.length ? h("p", { class: "soft" }, `Only finished runs count. Medians over seeds of the cost to the target; ≥ and ≤ rest on a run that missed it. The interval speaks about ${found.scope || "these workloads"}.`) : null, ...found.notes.map((text) => h("p", { class: "soft" }, text))]);
      await draw(found, asked, themes);
      return found.stale;
    },
    touched: (message) => message.removed.length > 0 || message.runs.some((r) => (one ? members.has(r.id) || r.workload === workload : r.state !== "running")),
  };
}

export const races = { key: () => "races", open: list };
export const race = { key: (asked) => `race:${asked.id}`, open };
