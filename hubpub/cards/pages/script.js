"use strict";
// Theme: what the system asks for, until the button says otherwise. A picture in a card follows the button too.
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const chosen = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
function paint() {
  const choice = chosen();
  if (choice) root.dataset.theme = choice; else delete root.dataset.theme;
  const dark = choice ? choice === "dark" : system.matches;
  const button = document.getElementById("theme");
  if (button) button.textContent = dark ? "Light" : "Dark";
  for (const source of document.querySelectorAll("picture source[media]")) {
    source.dataset.media ??= source.media;
    if (!source.dataset.media.includes("prefers-color-scheme")) continue;
    source.media = !choice ? source.dataset.media
      : source.dataset.media.includes("dark") === dark ? "all" : "not all";
  }
}
paint();
system.addEventListener("change", paint);

// Live reload: the server says when a file was saved; only the part that differs is exchanged, so the page stays where it is.
let place = 0;
async function refresh(version) {
  const answer = await fetch(location.href, { cache: "no-store" });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const open = [...document.querySelectorAll("details")].map((one) => one.open);
  const main = page.querySelector("main");
  document.title = page.title;
  main.querySelectorAll("details").forEach((one, index) => { one.open = open[index] ?? one.open; });
  main.classList.add("fresh");
  // A page that is short for a moment (an error, a file half written) does not lose the reader's place.
  if (root.scrollHeight - innerHeight >= place) place = scrollY;
  document.querySelector("main").replaceWith(main);
  scrollTo(0, place);
  document.body.dataset.version = version;
  paint();
}
addEventListener("DOMContentLoaded", () => {
  paint();
  document.getElementById("theme").addEventListener("click", () => {
    const dark = (chosen() ?? (system.matches ? "dark" : "light")) === "dark";
    try { localStorage.setItem("theme", dark ? "light" : "dark"); } catch { root.dataset.theme = dark ? "light" : "dark"; }
    paint();
  });
  const state = document.getElementById("state");
  const events = new EventSource("/_events");
  events.onopen = () => { state.textContent = "live"; };
  events.onerror = () => { state.textContent = "not connected"; };
  events.onmessage = (event) => {
    if (event.data !== document.body.dataset.version) refresh(event.data);
  };
});
