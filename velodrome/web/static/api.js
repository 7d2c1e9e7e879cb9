// Questions to the server. A view that is left cancels its own.
export async function get(path, parameters = {}, signal = undefined) {
  const kept = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== "");
  const answer = await fetch(`/api/${path}?${new URLSearchParams(kept)}`, { signal, credentials: "same-origin" });
  if (answer.ok) return answer.json();
  const text = await answer.text();
  let message = text;
  try { message = JSON.parse(text).error; } catch { /* the guard answers in plain text */ }
  throw new Error(message.trim());
}

let themes;
export const look = () => (themes ??= get("themes"));

// Vega is one script of 0.9 MB: fetched when the first chart is drawn, after the first paint.
let loading;
export function vega() {
  loading ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = "/vega.js";
    script.onload = () => done(window.vegaEmbed);
    script.onerror = () => failed(new Error("the charts' script could not be loaded"));
    document.head.append(script);
  });
  return loading;
}
