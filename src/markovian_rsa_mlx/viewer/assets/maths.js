// LaTeX in texts: shown as it is, or rendered as MathML by Temml (vendored) if the reader switches it on. Rendered elements
// and attributes are checked against a list before they enter the page.

import { h } from "./dom.js";

const DELIMITED =
  /\$\$([^$]{1,4000})\$\$|\\\[([^]{1,4000}?)\\\]|\\\(([^]{1,4000}?)\\\)|\$([^\s$](?:[^$\n]{0,400}[^\s$\\])?)\$(?!\d)|(\\boxed\s*\{[^\n]{0,400}\})/g;
const ELEMENTS = new Set(
  (
    "math semantics mrow mi mn mo ms mtext mspace mfrac msqrt mroot mstyle merror mpadded mphantom msub msup msubsup munder mover " +
    "munderover mmultiscripts mprescripts mtable mtr mtd menclose"
  ).split(" "),
);
const ATTRIBUTES = new Set(
  (
    "class display mathvariant stretchy fence separator form lspace rspace accent accentunder linethickness columnalign rowspacing " +
    "columnspacing columnlines rowlines width height depth voffset minsize maxsize movablelimits largeop symmetric scriptlevel " +
    "displaystyle mathsize notation dir xmlns tabindex"
  ).split(" "),
);

let on = false;

export function mathsOn() {
  return on;
}

export function setMaths(value) {
  on = value;
}

export function canRenderMaths() {
  return typeof globalThis.temml === "object" && "MathMLElement" in globalThis;
}

// A text as [{text} | {text, tex, display}], or null if it has no mathematics.
export function mathsPieces(text) {
  const pieces = [];
  let done = 0;
  for (const match of text.matchAll(DELIMITED)) {
    const tex = match[1] ?? match[2] ?? match[3] ?? match[4] ?? match[5];
    pieces.push({ text: text.slice(done, match.index) });
    pieces.push({ text: match[0], tex, display: match[1] !== undefined || match[2] !== undefined });
    done = match.index + match[0].length;
  }
  return done ? [...pieces, { text: text.slice(done) }] : null;
}

// The rendered formula, or its source if Temml refuses it or makes an element that is not allowed.
export function mathsOf({ text, tex, display }) {
  const box = h("span", { class: "formula", title: text.slice(0, 400) });
  try {
    const limits = { throwOnError: true, trust: false, maxExpand: 200, maxSize: [40, 400] };
    globalThis.temml.render(tex, box, { ...limits, displayMode: display, annotate: false });
    if (box.querySelector("*") && [...box.querySelectorAll("*")].every(allowed)) return box;
  } catch {
    // not LaTeX that Temml can read
  }
  return document.createTextNode(text);
}

function allowed(element) {
  return (
    ELEMENTS.has(element.localName) &&
    [...element.attributes].every(({ name }) => ATTRIBUTES.has(name) || name === "style")
  );
}
