// What is shown is in the address, so that every view can be linked, reloaded and gone back to.
let changed = () => {};
export const whenChanged = (call) => { changed = call; };
export const state = () => Object.fromEntries(new URLSearchParams(location.search));

export function link(next) {
  const kept = Object.entries(next).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  return kept.length ? `?${new URLSearchParams(kept)}` : "/";
}

// A change within a view replaces the entry in the history (typing in a filter is no way to go back through); a new view adds one.
export function go(next, { add = false } = {}) {
  const to = link(next);
  if (to === (location.search || "/")) return;
  history[add ? "pushState" : "replaceState"](null, "", to);
  changed(add);
}

export const change = (part) => go({ ...state(), ...part });

addEventListener("popstate", () => changed(true));
document.addEventListener("click", (event) => {
  const anchor = event.target.closest("a[data-go]");
  if (!anchor || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  const to = new URL(anchor.href);
  go(Object.fromEntries(to.searchParams), { add: true });
});
