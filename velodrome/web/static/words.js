// Numbers in words, as in the reports.
export const MISSING = "—";
const PREFIXES = ["", "k", "M", "G", "T", "P", "E", "Z"];

export function digits(x) {
  if (x === null || x === undefined || !Number.isFinite(x)) return MISSING;
  const size = Math.abs(x);
  if (x !== 0 && (size < 1e-4 || size >= 1e6)) return x.toExponential(2);
  if (size < 0.9995) return String(Number(x.toPrecision(3)));
  return size < 9.995 ? x.toFixed(2) : size < 99.95 ? x.toFixed(1) : x.toFixed(0);
}

export function quantity(x, unit = "") {
  if (x === null || x === undefined || !Number.isFinite(x)) return MISSING;
  let power = 0;
  while (Math.abs(x) >= 999.5 && power < PREFIXES.length - 1) [x, power] = [x / 1000, power + 1];
  return `${power === 0 && Number.isInteger(x) ? x : digits(x)} ${PREFIXES[power]}${unit}`.trim();
}

export function seconds(x) {
  if (x === null || x === undefined || !Number.isFinite(x)) return MISSING;
  if (x === 0) return "0 s";
  if (x < 0.9995) return `${digits(x * 1e3)} ms`;
  if (x < 99.95) return `${digits(x)} s`;
  const minutes = Math.floor(Math.round(x) / 60), rest = Math.round(x) % 60;
  return minutes < 60 ? `${minutes} min ${String(rest).padStart(2, "0")} s` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

export const cost = (axis, x) => (axis === "seconds" ? seconds(x) : quantity(x));
export const median = (axis, range) => (range ? (range.median_is_bound ? "≥ " : "") + cost(axis, range.median) : MISSING);
export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

// The file's own time, as a clock shows it: "3 s ago" would be wrong by as much as two machines' clocks differ.
export function clock(stamp) {
  const then = new Date(stamp * 1000), now = new Date();
  const time = then.toLocaleTimeString([], { hour12: false });
  return then.toDateString() === now.toDateString() ? time : `${then.toLocaleDateString("sv")} ${time.slice(0, 5)}`;
}
