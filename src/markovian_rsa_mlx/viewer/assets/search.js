// Search in all texts of the page.

import { amount, h, visible } from "./dom.js";
import { places } from "./places.js";

const SNIPPETS = 3;
const AROUND = 60;
const MOST = 1000;

export async function searchPage(view, query) {
  if (!query.trim())
    return [h("h1", {}, "Search"), h("p", {}, "Type what to look for; capital letters count for nothing.")];
  const wanted = new RegExp(query.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"), "giu");
  const results = [];
  let hits = 0;
  let more = false;
  for await (const place of places(view)) {
    const found = matches(place.text, wanted);
    if (!found.length) continue;
    hits += found.length;
    more ||= found.length === MOST;
    results.push(result(place, found));
  }
  return [
    h("h1", {}, "Search"),
    h("p", {}, `${more ? "at least " : ""}${amount(hits, "place")} in ${amount(results.length, "text")}.`),
    h("ol", { class: "results" }, results),
  ];
}

function matches(text, wanted) {
  const found = [];
  for (const match of text.matchAll(wanted)) {
    found.push({ at: match.index, length: match[0].length });
    if (found.length === MOST) break;
  }
  return found;
}

function result({ name, text, link }, found) {
  const snippets = (some) => some.map((hit) => snippet(text, hit, link(hit.at, hit.length)));
  const words = ` ${found.length === MOST ? "at least " : ""}${amount(found.length, "place")}`;
  return h(
    "li",
    {},
    h("h2", {}, name, h("span", { class: "minor" }, words)),
    h("ul", {}, snippets(found.slice(0, SNIPPETS))),
    found.length > SNIPPETS ? rest(() => snippets(found.slice(SNIPPETS)), found.length - SNIPPETS) : null,
  );
}

// The further places of a text; they are made when they are asked for.
function rest(make, number) {
  const list = h("ul", {});
  const fill = () => list.childElementCount || list.append(...make());
  return h("details", { ontoggle: fill }, h("summary", {}, amount(number, "more place")), list);
}

function snippet(text, { at, length }, link) {
  return h(
    "li",
    {},
    h(
      "a",
      link,
      h(
        "bdi",
        {},
        "… ",
        visible(text.slice(Math.max(0, at - AROUND), at)),
        h("mark", { class: "found" }, visible(text.slice(at, at + length))),
        visible(text.slice(at + length, at + length + AROUND)),
        " …",
      ),
    ),
  );
}
