// Parts of a page put in the place of older ones: what has not changed stays, with its focus, selection and scrolling.

const FOCUSABLE = "a, button, input, select, summary, [tabindex]";
const SCROLLERS = ".scroller, .text";
const made = new WeakMap(); // a copy of each part as it was made: what is done to it later is no change of content

let pressed = null; // what the pointer is down on

addEventListener("pointerdown", (event) => (pressed = event.target), true);
for (const name of ["pointerup", "pointercancel", "dragend"]) addEventListener(name, () => (pressed = null), true);

// Call `act` whenever the reader may have let go of a part that waits.
export function whenLetGo(act) {
  document.addEventListener("selectionchange", act);
  for (const name of ["pointerup", "pointercancel", "dragend", "focusout"]) addEventListener(name, () => setTimeout(act));
}

export function fill(main, nodes) {
  nodes.forEach((node) => made.set(node, node.cloneNode(true)));
  main.replaceChildren(...nodes);
}

// Only the parts whose content differs are replaced. True: one that the reader holds waits until they let go of it.
export function renew(main, nodes) {
  const focus = focusIn(main);
  const before = new Map(keysOf([...main.children]).map((key, i) => [key, main.children[i]]));
  const keys = keysOf(nodes);
  const moved = [];
  let waits = false;
  const wanted = nodes.map((node, i) => {
    const old = before.get(keys[i]);
    if (old && made.get(old)?.isEqualNode(node)) return old;
    if (old && isHeld(old)) {
      waits = true;
      return old;
    }
    made.set(node, node.cloneNode(true));
    if (old) moved.push(carry(old, node));
    return node;
  });
  place(main, wanted);
  moved.forEach((scroll) => scroll());
  if (focus && document.activeElement === document.body && !refocus(main, focus)) main.focus({ preventScroll: true });
  return waits;
}

// Those that stay are not touched: a node that is taken out, if only for a moment, loses the focus.
function place(main, wanted) {
  const staying = new Set(wanted);
  [...main.childNodes].forEach((node) => staying.has(node) || node.remove());
  let at = main.firstChild;
  for (const node of wanted) {
    if (node === at) at = at.nextSibling;
    else main.insertBefore(node, at);
  }
}

// What a reader had opened in the old part is open in the new one, and what the pointer lights up is lit; what is given
// back scrolls it as the old one was.
function carry(old, fresh) {
  const open = [...old.querySelectorAll("details[open]")].map(wordsOf);
  for (const details of fresh.querySelectorAll("details")) {
    if (details.open || !open.includes(wordsOf(details))) continue;
    details.open = true;
    details.dispatchEvent(new Event("toggle")); // what is made only when it is opened is there at once
  }
  if (old.matches(":hover")) carryLight(old, fresh);
  const places = scrollersOf(old).map(({ scrollLeft, scrollTop }) => [scrollLeft, scrollTop]);
  return () => scrollersOf(fresh).forEach((scroller, i) => scroller.scrollTo(...(places[i] ?? [0, 0])));
}

// Which details these are: those of other headings may have the same summary.
function wordsOf(details) {
  const heading = details.closest("li, section")?.querySelector("h2");
  return `${heading?.textContent} ${details.querySelector("summary").textContent}`;
}

function carryLight(old, fresh) {
  const lit = new Set([...old.querySelectorAll(".lit")].map(litName));
  if (!old.querySelector(".dimmed")) return;
  fresh.querySelector(".lineage")?.classList.add("dimmed");
  for (const one of fresh.querySelectorAll(".node, .edge")) one.classList.toggle("lit", lit.has(litName(one)));
}

function litName({ dataset }) {
  return dataset.key ?? dataset.edge;
}

function scrollersOf(part) {
  return [...(part.matches(SCROLLERS) ? [part] : []), ...part.querySelectorAll(SCROLLERS)];
}

// A selection, a click that has begun and an open choice would be lost with the part.
function isHeld(part) {
  const selection = document.getSelection();
  const { activeElement } = document;
  return (
    (!selection.isCollapsed && selection.containsNode(part, true)) ||
    part.contains(pressed) ||
    (activeElement?.localName === "select" && part.contains(activeElement))
  );
}

// A name for each part: its id or class, and which of the same it is.
function keysOf(nodes) {
  const seen = new Map();
  return nodes.map((node) => {
    const name = node.id || `${node.localName} ${node.className}`;
    seen.set(name, (seen.get(name) ?? 0) + 1);
    return `${name} ${seen.get(name)}`;
  });
}

// Where the focus is, in words that still hold when the part is made anew; null: not in `main`.
export function focusIn(main) {
  const active = document.activeElement;
  if (active === main || !main.contains(active)) return null;
  const parts = [...main.children];
  const part = parts.findIndex((one) => one.contains(active));
  const name = nameOf(active);
  const alike = focusable(parts[part]).filter((one) => nameOf(one) === name);
  return { part: keysOf(parts)[part], name, at: alike.indexOf(active) };
}

// Put the focus there; false: nothing like it is in `main`.
export function refocus(main, focus) {
  const parts = [...main.children];
  const part = focus && parts[keysOf(parts).indexOf(focus.part)];
  if (!part) return false;
  const alike = focusable(part).filter((one) => nameOf(one) === focus.name);
  const found = alike[focus.at] ?? alike.at(-1);
  found?.focus({ preventScroll: true });
  return found !== undefined;
}

function focusable(part) {
  return [...(part.matches(FOCUSABLE) ? [part] : []), ...part.querySelectorAll(FOCUSABLE)];
}

function nameOf(element) {
  const own = element.dataset.key ?? element.getAttribute("href") ?? element.getAttribute("aria-label");
  const row = element.closest("tr")?.querySelector("th a")?.getAttribute("href") ?? "";
  return `${element.localName} ${own ?? element.textContent.slice(0, 40)} ${row}`;
}
