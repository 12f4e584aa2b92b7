// Long, untrusted texts on the screen. A text is cut into blocks that the browser lays out only when they come near the
// window. Marks show the parts that were carried forward, kept or found. The characters stay unchanged: hidden ones show a
// glyph, and copying gives the raw text.

import { glyph, h, HIDDEN } from "./dom.js";
import { mathsOf, mathsOn, mathsPieces } from "./maths.js";

const BLOCK = 3000; // characters after which a block ends at the next line end
const LINE = 12000; // length at which a single line is cut
const NEAR = "1200px";
const HIDDEN_RUN = new RegExp(`(?:${HIDDEN.source})+`, "g");

const waiting = new Map();
const watcher = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => complete(entry.target)),
  { rootMargin: NEAR },
);

function complete(block) {
  const build = waiting.get(block);
  if (!build) return;
  waiting.delete(block);
  watcher.unobserve(block);
  block.replaceChildren(...build());
}

// Forget the blocks that were removed from the page before they came near the window.
export function forgetGone() {
  for (const block of waiting.keys()) {
    if (block.isConnected) continue;
    waiting.delete(block);
    watcher.unobserve(block);
  }
}

// For paper: open all details until the print is over, and lay out all blocks.
export function completeAll() {
  const closed = [...document.querySelectorAll("main details:not([open])")];
  for (const one of closed) {
    one.open = true;
    one.dispatchEvent(new Event("toggle")); // the browser's own event would be too late for the print
  }
  [...waiting.keys()].forEach(complete);
  addEventListener("afterprint", () => closed.forEach((one) => (one.open = false)), { once: true });
}

// Marks are {from, to, kind, colour, title}; they may overlap. The element's textContent is `text`, exactly (unless maths
// is rendered).
export function textView(text, marks = [], label = null) {
  const maths = mathsOn();
  const blocks = cutBlocks(text).map(([from, to]) => {
    const part = text.slice(from, to);
    const here = marks.filter((mark) => mark.from < to && mark.to > from);
    const block = h("div", { class: "block" });
    block.from = from;
    block.to = to;
    const plain = !here.length && !HIDDEN.test(part) && !(maths && mathsPieces(part));
    block.append(part);
    if (!plain) {
      waiting.set(block, () => pieces(text, from, to, here, maths));
      watcher.observe(block);
    }
    return block;
  });
  const region = label ? { role: "region", "aria-label": label, tabindex: 0 } : {};
  // Marks are drawn late. With this attribute a text with other marks differs from the start (`dom_diff.js`).
  const shows = [...(maths ? ["maths"] : []), ...marks.map(({ from, to, kind }) => `${from}-${to} ${kind}`)].join(", ");
  return h("div", { class: "text", ...region, "data-shows": shows || null, oncopy: copyRaw }, blocks);
}

// Scroll to the place to be found in a text of `main`. Returns false if there is none.
export function revealFound(main) {
  const view = [...main.querySelectorAll(".text")].find((text) => text.found !== undefined);
  const block = view && [...view.children].find((child) => view.found >= child.from && view.found < child.to);
  if (!block) return false;
  complete(block);
  const target = block.querySelector("mark.found") ?? block;
  target.scrollIntoView({ block: "center" });
  return true;
}

function copyRaw(event) {
  const selection = document.getSelection();
  if (!selection.rangeCount || mathsOn()) return;
  event.clipboardData.setData("text/plain", selection.getRangeAt(0).cloneContents().textContent);
  event.preventDefault();
}

function cutBlocks(text) {
  const blocks = [];
  let from = 0;
  while (from < text.length) {
    let to = text.indexOf("\n", Math.min(from + BLOCK, text.length)) + 1;
    if (to === 0) to = text.length;
    if (to - from > LINE) {
      const lineEnd = text.lastIndexOf("\n", from + LINE - 1) + 1;
      to = lineEnd > from ? lineEnd : from + LINE;
      if (/[\udc00-\udfff]/.test(text[to] ?? "") && to - 1 > from) to--;
    }
    blocks.push([from, to]);
    from = to;
  }
  return blocks;
}

function* boundaries(from, to, marks) {
  const points = new Set([from, to]);
  for (const mark of marks) {
    if (mark.from > from) points.add(mark.from);
    if (mark.to < to) points.add(mark.to);
  }
  const sorted = [...points].sort((a, b) => a - b);
  for (let i = 0; i + 1 < sorted.length; i++) yield [sorted[i], sorted[i + 1]];
}

function pieces(text, from, to, marks, maths) {
  const nodes = [];
  for (const [start, end] of boundaries(from, to, marks)) {
    const over = marks.filter((mark) => mark.from <= start && mark.to >= end);
    const content = characters(text.slice(start, end), maths);
    if (!over.length) nodes.push(...content);
    else {
      const kinds = [...new Set(over.map((mark) => mark.kind))];
      const title = over.map((mark) => mark.title).join("; ");
      nodes.push(h("mark", { class: kinds.join(" "), title, style: bands(over) }, content));
    }
  }
  return nodes;
}

// A part that is in several tails has the colours of all of them, one above the other.
function bands(marks) {
  const colours = [...new Set(marks.map((mark) => mark.colour).filter((colour) => colour !== undefined))];
  if (colours.length < 2) return {};
  const edge = (i) => `${(100 * i) / colours.length}%`;
  const tint = (colour) => `color-mix(in srgb, var(--c${colour}) 25%, var(--paper))`;
  const stops = colours.map((colour, i) => `${tint(colour)} ${edge(i)} ${edge(i + 1)}`);
  return { "background-image": `linear-gradient(${stops.join(", ")})` };
}

function characters(text, maths) {
  const found = maths ? mathsPieces(text) : null;
  if (found) return found.flatMap((piece) => (piece.tex === undefined ? hidden(piece.text) : [mathsOf(piece)]));
  return hidden(text);
}

// Keep a run of hidden characters in an isolate that ends their effect, and show glyphs in their place.
function hidden(text) {
  const nodes = [];
  let done = 0;
  for (const match of text.matchAll(HIDDEN_RUN)) {
    nodes.push(text.slice(done, match.index));
    const code = (c) => "U+" + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    const glyphs = [...match[0]].map(glyph).join("");
    const title = [...match[0].slice(0, 8)].map(code).join(" ");
    nodes.push(h("span", { class: "hidden", "data-glyph": glyphs, title }, match[0]));
    done = match.index + match[0].length;
  }
  nodes.push(text.slice(done));
  return nodes.filter((node) => node !== "");
}
