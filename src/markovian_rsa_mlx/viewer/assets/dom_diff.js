// Replace the parts of a page that changed. The others stay, with their focus, selection and scrolling.

const FOCUSABLE = "a, button, input, select, summary, [tabindex]";
const SCROLLERS = ".scroller, .text";
const originals = new WeakMap(); // a copy of each part as it was made: later changes by the reader do not count

let pressed = null; // the element under the pressed pointer

addEventListener("pointerdown", (event) => (pressed = event.target), true);
for (const name of ["pointerup", "pointercancel", "dragend"]) addEventListener(name, () => (pressed = null), true);

// Call `act` whenever the reader may have released a part that waits.
export function onRelease(act) {
  document.addEventListener("selectionchange", act);
  for (const name of ["pointerup", "pointercancel", "dragend", "focusout"]) addEventListener(name, () => setTimeout(act));
}

export function replaceAll(main, nodes) {
  nodes.forEach((node) => originals.set(node, node.cloneNode(true)));
  main.replaceChildren(...nodes);
}

// Replace only the parts whose content differs. Returns true if a part waits because the reader holds it.
export function renew(main, nodes) {
  const focus = focusIn(main);
  const before = new Map(keysOf([...main.children]).map((key, i) => [key, main.children[i]]));
  const keys = keysOf(nodes);
  const moved = [];
  let waits = false;
  const wanted = nodes.map((node, i) => {
    const old = before.get(keys[i]);
    if (old && originals.get(old)?.isEqualNode(node)) return old;
    if (old && isHeld(old)) {
      waits = true;
      return old;
    }
    originals.set(node, node.cloneNode(true));
    if (old) moved.push(carryState(old, node));
    return node;
  });
  place(main, wanted);
  moved.forEach((scroll) => scroll());
  if (focus && document.activeElement === document.body && !refocus(main, focus)) main.focus({ preventScroll: true });
  return waits;
}

// Parts that stay are not moved: a node that is removed, even for a moment, loses the focus.
function place(main, wanted) {
  const staying = new Set(wanted);
  [...main.childNodes].forEach((node) => staying.has(node) || node.remove());
  let at = main.firstChild;
  for (const node of wanted) {
    if (node === at) at = at.nextSibling;
    else main.insertBefore(node, at);
  }
}

// Open the details that were open in the old part, and light the nodes that the pointer lit there. Returns a function that
// scrolls the new part as the old one was.
function carryState(old, fresh) {
  const open = [...old.querySelectorAll("details[open]")].map(detailsName);
  for (const details of fresh.querySelectorAll("details")) {
    if (details.open || !open.includes(detailsName(details))) continue;
    details.open = true;
    details.dispatchEvent(new Event("toggle")); // makes its content immediately
  }
  if (old.matches(":hover")) carryLight(old, fresh);
  const places = scrollersOf(old).map(({ scrollLeft, scrollTop }) => [scrollLeft, scrollTop]);
  return () => scrollersOf(fresh).forEach((scroller, i) => scroller.scrollTo(...(places[i] ?? [0, 0])));
}

// A name for details: those under other headings can have the same summary.
function detailsName(details) {
  const heading = details.closest("li, section")?.querySelector("h2");
  return `${heading?.textContent} ${details.querySelector("summary").textContent}`;
}

function carryLight(old, fresh) {
  if (!old.querySelector(".dimmed")) return;
  const nameOfBox = ({ dataset }) => dataset.key ?? dataset.edge;
  const lit = new Set([...old.querySelectorAll(".lit")].map(nameOfBox));
  fresh.querySelector(".lineage")?.classList.add("dimmed");
  for (const one of fresh.querySelectorAll(".node, .edge")) one.classList.toggle("lit", lit.has(nameOfBox(one)));
}

function scrollersOf(part) {
  return [...(part.matches(SCROLLERS) ? [part] : []), ...part.querySelectorAll(SCROLLERS)];
}

// A selection, a click that has started and an open select would be lost with the part.
function isHeld(part) {
  const selection = document.getSelection();
  const { activeElement } = document;
  return (
    (!selection.isCollapsed && selection.containsNode(part, true)) ||
    part.contains(pressed) ||
    (activeElement?.localName === "select" && part.contains(activeElement))
  );
}

// A name for each part: its id or class, and its number among parts of the same name.
function keysOf(nodes) {
  const seen = new Map();
  return nodes.map((node) => {
    const name = node.id || `${node.localName} ${node.className}`;
    seen.set(name, (seen.get(name) ?? 0) + 1);
    return `${name} ${seen.get(name)}`;
  });
}

// The place of the focus, by names that stay valid when the part is made again. null if it is not in `main`.
export function focusIn(main) {
  const active = document.activeElement;
  if (active === main || !main.contains(active)) return null;
  const parts = [...main.children];
  const part = parts.findIndex((one) => one.contains(active));
  const name = nameOf(active);
  const alike = focusable(parts[part]).filter((one) => nameOf(one) === name);
  return { part: keysOf(parts)[part], name, at: alike.indexOf(active) };
}

// Focus that place. Returns false if `main` has no such element.
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
