// Runs before anything is drawn, so that a page that was switched to dark does not flash.
try {
  const chosen = localStorage.getItem("velodrome-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch {
  // storage is switched off: the system's preference stands
}
