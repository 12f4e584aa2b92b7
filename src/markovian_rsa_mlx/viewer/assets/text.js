// Long, untrusted texts on the screen. A text is cut into blocks which the browser lays out only when they come near the
// window; marks (what was carried, what was kept, what was found) are laid over it. The characters stay as they are:
// hidden ones show a glyph, and copying gives the raw text.

import { glyph, h, HIDDEN } from "./dom.js";
import { mathsOf, mathsOn, mathsPieces } from "./maths.js";

const BLOCK = 3000; // characters after which a block ends at the next line end
const LINE = 12000; // longest piece of one line that stays in a block
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

// Texts that were put aside before they were looked at.
export function forgetGone() {
  for (const block of waiting.keys()) {
    if (block.isConnected) continue;
    waiting.delete(block);
    watcher.unobserve(block);
  }
}

// For paper: all that is closed, and all that waits to be scrolled to.
export function completeAll() {
  openAll();
  [...waiting.keys()].forEach(complete);
}

function openAll() {
  const closed = [...document.querySelectorAll("main details:not([open])")];
  for (const one of closed) {
    one.open = true;
    one.dispatchEvent(new Event("toggle")); // paper does not wait for the browser's own
  }
  addEventListener("afterprint", () => closed.forEach((one) => (one.open = false)), { once: true });
}

// Marks are {from, to, kind, slot, title}; they may overlap. The element's textContent is `text`, exactly (unless maths
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
  const view = h(
    "div",
    {
      class: "text",
      role: label ? "region" : null,
      "aria-label": label,
      tabindex: label ? 0 : null,
      "data-shows": sign(marks, maths), // the marks come later: by this a text with others is known to be another
    },
    blocks,
  );
  view.addEventListener("copy", copyRaw);
  return view;
}

function sign(marks, maths) {
  const words = marks.map(({ from, to, kind }) => `${from}-${to} ${kind}`);
  return (maths ? ["maths", ...words] : words).join(", ") || null;
}

// Scroll to the place that was sought in a text of `main`; false: there is none.
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
      const title = over
        .map((mark) => mark.title)
        .filter(Boolean)
        .join("; ");
      const kinds = [...new Set(over.map((mark) => mark.kind))];
      nodes.push(h("mark", { class: kinds.join(" "), title: title || null, style: bands(over) }, content));
    }
  }
  return nodes;
}

// What stands in several tails has the colours of all of them, one above the other.
function bands(marks) {
  const slots = [...new Set(marks.map((mark) => mark.slot).filter((slot) => slot !== undefined))];
  if (slots.length < 2) return {};
  const edge = (i) => `${(100 * i) / slots.length}%`;
  const stops = slots.map((slot, i) => `var(--k${slot}) ${edge(i)} ${edge(i + 1)}`);
  return { "background-image": `linear-gradient(${stops.join(", ")})` };
}

function characters(text, maths) {
  const found = maths ? mathsPieces(text) : null;
  if (found) return found.flatMap((piece) => (piece.tex === undefined ? hidden(piece.text) : [mathsOf(piece)]));
  return hidden(text);
}

// A run of hidden characters keeps them, in an isolate that ends their effect, and shows glyphs in their place.
function hidden(text) {
  const nodes = [];
  let done = 0;
  for (const match of text.matchAll(HIDDEN_RUN)) {
    nodes.push(text.slice(done, match.index));
    const codes = [...match[0].slice(0, 8)].map(
      (c) => "U+" + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0"),
    );
    nodes.push(
      h("span", { class: "hidden", "data-glyph": [...match[0]].map(glyph).join(""), title: codes.join(" ") }, match[0]),
    );
    done = match.index + match[0].length;
  }
  nodes.push(text.slice(done));
  return nodes.filter((node) => node !== "");
}
