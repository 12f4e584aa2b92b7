// The frame of a page: its head, the theme, the key of a server.

import { h } from "./dom.js";
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
      // a page from disk may have no storage; the theme then lasts as long as the page
    }
  };
  return h(
    "label",
    {},
    "Theme ",
    h(
      "select",
      { onchange: choose },
      THEMES.map((theme) => h("option", { value: theme, selected: theme === storedTheme() }, theme)),
    ),
  );
}

// Say something to those who cannot see it happen.
export function announce(words) {
  document.getElementById("said").textContent = words;
}

export function skipLink() {
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
}

// What a server that refuses is answered with: a field for its key, or the sentence.
export function refusal(error, again) {
  if (error.status !== 401 && error.status !== 403)
    return h("p", { class: "missing" }, error.status === 404 ? "The server knows no such run." : error.message);
  const isKnown = storedKey() !== null;
  const field = h("input", { type: "password", name: "key", autocomplete: "current-password", required: true });
  const submit = (event) => {
    event.preventDefault();
    storeKey(field.value);
    again();
  };
  return h(
    "form",
    { class: "key-form", onsubmit: submit },
    h("h1", {}, "This server asks for its key"),
    h("label", {}, "Key ", field),
    " ",
    h("button", {}, "Show"),
    isKnown ? h("p", { role: "alert" }, "The key that this tab knew was not taken.") : null,
  );
}
