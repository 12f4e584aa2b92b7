// Files made in the page itself: exactly the characters or bytes, nothing is requested.

import { h } from "./dom.js";

export function download(name, content) {
  const url = URL.createObjectURL(
    content instanceof Blob ? content : new Blob([content], { type: "text/plain;charset=utf-8" }),
  );
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

export function downloadButton(words, name, content) {
  const save = async () => download(name, typeof content === "function" ? await content() : content);
  return h("button", { type: "button", onclick: save }, words);
}
