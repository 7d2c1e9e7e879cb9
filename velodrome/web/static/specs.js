// The charts as Vega-Lite. Colours as in the reports: the reference grey, the others in the order in which they came.
const NOT = "#8a8a8a";

export function colours(names, themes, reference) {
  const others = names.filter((name) => name !== reference);
  const range = names.map((name) => (name === reference ? NOT : themes.palette[others.indexOf(name) % themes.palette.length]));
  return { domain: names, range };
}

const narrow = () => innerWidth < 520;
const legend = (columns = 4) => ({ orient: "top", title: null, symbolType: "stroke", symbolStrokeWidth: 3, symbolOpacity: 1, columns: narrow() ? Math.ceil(columns / 2) : columns });

// From the best value to the worst first one, logarithmic where that spans a factor of three; rounded, so that a row rarely moves it.
function window_(values, firsts, target) {
  const all = [...values, ...(Number.isFinite(target) ? [target] : [])];
  if (!all.length) return {};
  const low = Math.min(...all), high = Math.max(...firsts, ...(Number.isFinite(target) ? [target] : []), low);
  const step = 10 ** Math.floor(Math.log10(Math.max(high - low, 1e-12))) / 5;
  if (low > 0 && high > 3 * low) {
    const fine = 10 ** Math.floor(Math.log10(low)) / 5;
    return { type: "log", domain: [Math.max(Math.floor(low / fine) * fine, low / 1.3), Math.ceil(high / step) * step] };
  }
  return { type: "linear", zero: false, domain: [Math.floor(low / step) * step, Math.ceil(high / step) * step || step] };
}

// Median with a ribbon and thin seeds for each algorithm, the target as a line.
export function bands({ metric, target, axis, algorithms }, themes, reference) {
  const names = algorithms.map((a) => a.algorithm).sort();
  const finite = (list) => list.filter((v) => v !== null);
  const values = algorithms.flatMap((a) => [...finite(a.low), ...a.seeds.flatMap((s) => finite(s.y))]);
  const firsts = algorithms.flatMap((a) => a.seeds.map((s) => s.y[0])).filter((v) => v !== null && v !== undefined);
  const scale = { nice: false, ...window_(values, firsts, target) };
  const x = { field: "x", type: "quantitative", title: themes.axes[axis].title, axis: { format: themes.axes[axis].format, tickCount: 5, labelOverlap: true }, scale: { nice: false, zero: true } };
  const y = { field: "y", type: "quantitative", title: metric, scale, axis: { tickCount: 6, format: "~r" } };
  const color = { field: "algorithm", type: "nominal", scale: colours(names, themes, reference), legend: legend() };
  const tooltip = [{ field: "algorithm" }, { field: "x", type: "quantitative", title: axis, format: ".4~s" }, { field: "y", type: "quantitative", title: `median ${metric}`, format: ".4~g" }, { field: "low", type: "quantitative", format: ".4~g" }, { field: "high", type: "quantitative", format: ".4~g" }, { field: "n", title: "seeds" }];
  const layers = [
    { data: { name: "median" }, mark: { type: "area", clip: true, opacity: 0.16 }, encoding: { x, y: { field: "low", type: "quantitative", scale }, y2: { field: "high" }, color } },
    { data: { name: "seeds" }, mark: { type: "line", clip: true, strokeWidth: 1, opacity: 0.45 }, encoding: { x, y, color, detail: { field: "seed" } } },
    { data: { name: "target" }, mark: { type: "rule", strokeDash: [5, 4], color: NOT }, encoding: { y: { field: "y", type: "quantitative", scale } } },
    { data: { name: "median" }, mark: { type: "line", clip: true, strokeWidth: 2.4 }, encoding: { x, y, color } },
    { data: { name: "median" }, mark: { type: "point", clip: true, filled: true, size: 120, opacity: 0 }, encoding: { x, y, color, tooltip } },
  ];
  const median = algorithms.flatMap((a) => a.x.map((at, i) => ({ algorithm: a.algorithm, x: at, y: a.y[i], low: a.low[i], high: a.high[i], n: a.n[i] })));
  const seeds = algorithms.flatMap((a) => a.seeds.flatMap((s) => s.x.map((at, i) => ({ algorithm: a.algorithm, seed: s.seed, x: at, y: s.y[i] }))));
  return { spec: { layer: layers, height: 300 }, datasets: { median, seeds, target: target === null ? [] : [{ y: target }] }, rows: median };
}

// One line for each of several series: {label, x, y}; `low` and `high` make a ribbon.
export function lines(series, titles, themes, { zero = false, log = false } = {}) {
  const names = series.map((s) => s.label);
  const values = series.flatMap((s) => s.y).filter((v) => v !== null);
  const positive = values.length && Math.min(...values) > 0 && Math.max(...values) > 20 * Math.min(...values);
  const size = values.length ? Math.max(...values.map(Math.abs)) : 1;
  const format = size >= 1e4 ? "~s" : size < 1e-3 ? "~e" : "~r"; // "~g" would write 1e+1 on a coarse axis
  const scale = log && positive ? { type: "log", nice: false } : { zero };
  const x = { field: "x", type: "quantitative", title: titles.x, axis: { format: titles.x === "seconds" ? "~r" : "~s", tickCount: 5, labelOverlap: true }, scale: { nice: false } };
  const y = { field: "y", type: "quantitative", title: titles.y, scale, axis: { tickCount: 6, format } };
  const color = { field: "series", type: "nominal", sort: names, scale: colours(names, themes), legend: names.length > 1 ? { ...legend(2), labelLimit: 300 } : null };
  const tooltip = [{ field: "series" }, { field: "x", type: "quantitative", title: titles.x, format: ".4~s" }, { field: "y", type: "quantitative", title: titles.y, format: ".5~g" }];
  const rows = series.flatMap((s) => s.x.map((at, i) => ({ series: s.label, x: at, y: s.y[i], ...(s.low ? { low: s.low[i], high: s.high[i] } : {}) })));
  const ribbon = series.some((s) => s.low) ? [{ data: { name: "lines" }, mark: { type: "area", opacity: 0.16 }, encoding: { x, y: { field: "low", type: "quantitative", scale }, y2: { field: "high" }, color } }] : [];
  const line = { data: { name: "lines" }, mark: { type: "line", strokeWidth: 2, clip: true, point: rows.length < 8 }, encoding: { x, y, color } };
  const hover = { data: { name: "lines" }, mark: { type: "point", filled: true, size: 120, opacity: 0 }, encoding: { x, y, color, tooltip } };
  return { spec: { layer: [...ribbon, line, hover], height: 300 }, datasets: { lines: rows }, rows };
}

// Ratios that a reader recognises; on a wide axis powers of two only.
function ratios([low, high]) {
  const fine = [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2], coarse = Array.from({ length: 21 }, (_, k) => Number((2 ** (k - 10)).toPrecision(2)));
  return { values: (high / low < 4 ? fine : coarse).filter((r) => r >= low && r <= high), labelExpr: "format(datum.value, '~g') + '×'", labelOverlap: true };
}

function domain(rows) {
  const ends = rows.flatMap((r) => [r.low, r.high, r.speedup]).filter((v) => v > 0 && Number.isFinite(v));
  const low = Math.min(...ends, 0.8) / 1.08, high = Math.max(...ends, 1.25) * 1.08;
  return [Math.floor(low * 20) / 20 || low, Math.ceil(high * 20) / 20];
}

// Speed-ups with their intervals, one row each, a line at 1; triangles are bounds.
export function intervals(found, names, themes, { reference, axis }) {
  const rows = found.filter((s) => s.speedup !== null).map((s) => ({ algorithm: s.algorithm, workload: s.workload ?? "overall", speedup: s.speedup, low: s.low ?? s.speedup, high: s.high ?? s.speedup, bound: s.bound, text: s.text, verdict: s.verdict }));
  const scale = { type: "log", domain: domain(rows), nice: false };
  const x = { field: "speedup", type: "quantitative", title: `speed-up over ${reference} (${axis} to target)`, scale, axis: ratios(scale.domain) };
  const order = [...new Set(rows.map((r) => r.algorithm))];
  const y = { field: "algorithm", type: "nominal", sort: order, title: null, axis: { ticks: false, domain: false, labelPadding: 10, labelLimit: 160 } };
  const color = { field: "algorithm", type: "nominal", scale: colours([...names].sort(), themes, reference), legend: null };
  const shape = { field: "bound", type: "nominal", scale: { domain: ["", "<", ">", "?"], range: ["circle", "triangle-left", "triangle-right", "diamond"] }, legend: null };
  const tooltip = ["algorithm", "text", "verdict"].map((field) => ({ field }));
  const layer = [
    { data: { name: "one" }, mark: { type: "rule", strokeDash: [5, 4], color: NOT }, encoding: { x } },
    { data: { name: "speedups" }, mark: { type: "rule", strokeWidth: 3, strokeCap: "round" }, encoding: { x: { ...x, field: "low" }, x2: { field: "high" }, y, color } },
    { data: { name: "speedups" }, mark: { type: "point", filled: true, size: 110, opacity: 1 }, encoding: { x, y, color, shape, tooltip } },
  ];
  return { spec: { layer, height: Math.max(80, 30 * order.length) }, datasets: { one: [{ speedup: 1 }], speedups: rows }, rows };
}

// How the overall interval narrowed with the number of seeds.
export function narrowing(found, names, themes, { reference }) {
  const scale = { type: "log", domain: domain(found), nice: false };
  const y = { field: "speedup", type: "quantitative", title: `speed-up over ${reference}`, scale, axis: ratios(scale.domain) };
  const x = { field: "seeds", type: "ordinal", title: "seeds", axis: { labelAngle: 0 }, scale: { paddingInner: 0.2 } };
  const color = { field: "algorithm", type: "nominal", scale: colours([...names].sort(), themes, reference), legend: { orient: "top", title: null, columns: narrow() ? 2 : 4, symbolType: "circle", values: [...new Set(found.map((r) => r.algorithm))].sort() } };
  const xOffset = { field: "algorithm", type: "nominal" };
  const tooltip = [{ field: "algorithm" }, { field: "seeds" }, ...["speedup", "low", "high"].map((field) => ({ field, type: "quantitative", format: ".3~g" }))];
  const layer = [
    { data: { name: "one" }, mark: { type: "rule", strokeDash: [5, 4], color: NOT }, encoding: { y: { ...y, field: "speedup" } } },
    { data: { name: "narrowing" }, mark: { type: "rule", strokeWidth: 3, strokeCap: "round" }, encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, xOffset, color } },
    { data: { name: "narrowing" }, mark: { type: "point", filled: true, size: 70, opacity: 1 }, encoding: { x, y, xOffset, color, tooltip } },
  ];
  return { spec: { layer, height: 260 }, datasets: { one: [{ speedup: 1 }], narrowing: found }, rows: found };
}
