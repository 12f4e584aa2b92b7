// The frame of a page: the theme, announcements, the form for the key of a server.

import { h, missing } from "./dom.js";
import { storedKey, storeKey } from "./stream.js";

const THEMES = ["auto", "light", "dark"];

function storedTheme() {
  try {
    return localStorage.getItem("mrsa-theme") ?? "auto";
  } catch {
    return "auto";
  }
}

export function applyTheme(theme = storedTheme()) {
  document.documentElement.dataset.theme = theme;
}

export function themeSwitch() {
  const choose = (event) => {
    applyTheme(event.target.value);
    try {
      localStorage.setItem("mrsa-theme", event.target.value);
    } catch {
      // A page from disk can be without storage. The theme then lasts as long as the page.
    }
  };
  const options = THEMES.map((theme) => h("option", { value: theme, selected: theme === storedTheme() }, theme));
  return h("label", {}, "Theme ", h("select", { onchange: choose }, options));
}

// Report a change to readers who cannot see it.
export function announce(words) {
  document.getElementById("announcement").textContent = words;
}

export function skipLink() {
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
}

// The page after a server refused a request: a field for its key, or the reason. `retry` is called with the new key.
export function refusal(error, retry) {
  if (error.status !== 401 && error.status !== 403)
    return missing(error.status === 404 ? "The server does not have this run." : error.message);
  const field = h("input", { type: "password", name: "key", autocomplete: "current-password", required: true });
  const submit = (event) => {
    event.preventDefault();
    storeKey(field.value);
    retry();
  };
  return h(
    "form",
    { class: "key-form", onsubmit: submit },
    h("h1", {}, "This server requires a key"),
    h("label", {}, "Key ", field),
    " ",
    h("button", {}, "Show"),
    storedKey() === null ? null : h("p", { role: "alert" }, "The server rejected the key of this tab."),
  );
}
