// Elements, numbers and downloads. Text enters the page only through text nodes and attributes.

const SVG = "http://www.w3.org/2000/svg";

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, v] of Object.entries(value)) element.style.setProperty(key, v);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  const shown = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  element.append(...shown);
  return element;
}

export function h(tag, attributes, ...children) {
  return build(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

// A list of [name, value]; entries that are null, or whose value is, are left out.
export function definitions(className, entries) {
  const shown = entries.filter((entry) => entry && entry[1] !== null);
  return h("dl", { class: className }, shown.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

export function table(className, head, rows) {
  const names = head.map((name) => h("th", { scope: "col" }, name));
  return h("table", { class: className }, h("thead", {}, h("tr", {}, names)), h("tbody", {}, rows));
}

// A part that scrolls sideways, also by keyboard.
export function scroller(label, content) {
  return h("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": label }, content);
}

// A part that is drawn in a smaller scale first, and scrolls sideways where that is too little: shadows and words say so.
export function pannable(label, content) {
  const part = scroller(label, content);
  const look = () => {
    part.classList.toggle("pans", part.scrollWidth > part.clientWidth + 1);
    part.classList.toggle("pans-back", part.scrollLeft > 1);
    part.classList.toggle("at-end", part.scrollLeft + part.clientWidth >= part.scrollWidth - 1);
  };
  part.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(part);
  return [part, h("p", { class: "minor pan-cue" }, "↔ There is more beside the window: scroll or swipe sideways.")];
}

export function missing(...content) {
  return h("p", { class: "missing" }, content);
}

// Text of a model on one line, isolated: its directions end where it ends.
export function modelText(text, width = 80) {
  const title = text.length > width ? visible(cut(text, 2000)) : null;
  return h("bdi", { class: "model-text", title }, oneLine(text, width));
}

export function oneLine(text, width) {
  return visible(cut(text.split(/\s+/).filter(Boolean).join(" "), width));
}

function cut(text, width) {
  if (text.length <= width) return text;
  const end = /[\ud800-\udbff]/.test(text[width - 2]) ? width - 2 : width - 1;
  return text.slice(0, end) + "…";
}

// Characters that are invisible or move others: controls, directions, zero widths, lone surrogates.
export const HIDDEN =
  /[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/;
const HIDDEN_ALL = new RegExp(HIDDEN.source, "g");

export function glyph(character) {
  const code = character.charCodeAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return `\u27e8${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
}

export function visible(text) {
  return text.replace(HIDDEN_ALL, glyph);
}

export function count(number) {
  const digits = Math.round(number).toString();
  return digits.replace(/\B(?=(\d{3})+$)/g, ",");
}

export function amount(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

export function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes < 60) return `${minutes} min ${String(Math.round(seconds) % 60).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

export function size(bytes) {
  const units = [["GB", 1e9], ["MB", 1e6], ["kB", 1e3], ["B", 1]];
  const [unit, scale] = units.find(([, least]) => bytes >= least) ?? units.at(-1);
  return `${(bytes / scale).toFixed(scale === 1 ? 0 : 1)} ${unit}`;
}

export function percent(share) {
  return `${Math.round(100 * share)}%`;
}

export function separated(items) {
  return items.flatMap((item, i) => (i === 0 ? [item] : [", ", item]));
}

// `a, b and c`
export function listed(items) {
  return items.length < 2 ? items : [...separated(items.slice(0, -1)), " and ", items.at(-1)];
}

// Save exactly these characters or bytes as a file.
export function download(name, content) {
  const blob = content instanceof Blob ? content : new Blob([content], { type: "text/plain;charset=utf-8" });
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

export function downloadButton(words, name, content) {
  const save = async () => download(name, typeof content === "function" ? await content() : content);
  return h("button", { type: "button", onclick: save }, words);
}
