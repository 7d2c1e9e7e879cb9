// The page: which view the address names, what the server says has changed, light and dark.
import { state, whenChanged } from "./address.js";
import { redraw } from "./chart.js";
import { h, say } from "./dom.js";
import { count } from "./words.js";
import { compare } from "./compare.js";
import { race, races } from "./races.js";
import { run } from "./run.js";
import { runs } from "./runs.js";

const VIEWS = { runs, races, race, run, compare };
const REST = 700; // milliseconds between two refreshes of a view: an update is seen within two seconds, and a storm of rows costs one
const main = document.getElementById("main");
const status = document.getElementById("status");
let view = null;
let leave = new AbortController();
let busy = false, wanted = false, timer = 0;

async function show(moved) {
  const asked = state();
  const name = Object.hasOwn(VIEWS, asked.view) ? asked.view : "runs";
  const same = view && view.key === VIEWS[name].key(asked);
  if (!same) {
    leave.abort();
    leave = new AbortController();
    view?.close?.();
    main.replaceChildren(h("p", { class: "soft" }, "Reading …"));
    view = { ...VIEWS[name].open(main, leave.signal), key: VIEWS[name].key(asked) };
    for (const anchor of document.querySelectorAll("nav a[data-go]")) {
      const here = new URL(anchor.href).searchParams.get("view") === (name === "race" ? "races" : name === "run" ? "runs" : name);
      anchor.toggleAttribute("aria-current", here);
      if (here) anchor.setAttribute("aria-current", "page");
    }
  }
  await refresh();
  if (moved && !same) { scrollTo(0, 0); main.focus({ preventScroll: true }); }
}

async function refresh() {
  if (busy) { wanted = true; return; }
  busy = true;
  const mine = view;
  try {
    if (await mine.refresh(state())) setTimeout(soon, 2 * REST); // what was told will be told anew
    document.title = `${main.querySelector("h1")?.textContent ?? "Runs"} · Velodrome`;
  } catch (error) {
    if (error.name !== "AbortError" && mine === view) main.replaceChildren(h("h1", {}, "That did not work"), h("p", {}, error.message));
  }
  busy = false;
  if (wanted || mine !== view) { wanted = false; await refresh(); }
}

let last = 0;
function soon() {
  if (timer) return;
  timer = setTimeout(() => {
    timer = 0;
    last = performance.now();
    if (document.hidden) wanted = true;
    else refresh();
  }, Math.max(40, last + REST - performance.now()));
}

function listen() {
  const source = new EventSource("/api/events");
  source.onmessage = (event) => {
    const message = JSON.parse(event.data);
    const reading = message.read < message.listed;
    status.textContent = message.error || (reading ? `reading ${message.read.toLocaleString("en")} of ${count(message.listed, "folder")}` : `live · ${count(message.total, "run")}`);
    status.dataset.state = message.error ? "bad" : "good";
    const over = message.runs.filter((r) => r.state !== "running" && r.state !== "quiet");
    if (over.length && over.length < 20 && !reading) say(over.length === 1 ? `${over[0].name}: ${over[0].state}.` : `${over.length} runs have finished.`);
    if (message.many || view?.touched?.(message)) soon();
  };
  source.onerror = () => {
    status.dataset.state = "bad";
    status.textContent = source.readyState === EventSource.CLOSED ? "the server asks for its address again: open the one it printed" : "no connection; trying again";
  };
}

document.addEventListener("visibilitychange", () => { if (!document.hidden && wanted) { wanted = false; refresh(); } });

const system = matchMedia("(prefers-color-scheme: dark)");
const button = document.getElementById("theme");
const dark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
function named() { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`); }
button.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  try { localStorage.setItem("velodrome-theme", document.documentElement.dataset.theme); } catch { /* not kept */ }
  named();
  redraw();
});
system.addEventListener("change", () => { named(); redraw(); });
document.querySelector("a.skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });

named();
whenChanged(show);
show(false).then(listen);
