// Search in all texts of the page.

import { amount, h, visible } from "./dom.js";
import { searchableTexts } from "./search_index.js";

const SNIPPETS = 3;
const AROUND = 60;
const MAX_PER_TEXT = 1000;

export async function searchPage(view, query) {
  if (!query.trim()) return [h("h1", {}, "Search"), h("p", {}, "Type a text to search for. Case is ignored.")];
  const pattern = new RegExp(query.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"), "giu");
  const results = [];
  let hits = 0;
  let isCut = false;
  for await (const one of searchableTexts(view)) {
    const found = matches(one.text, pattern);
    if (!found.length) continue;
    hits += found.length;
    isCut ||= found.length === MAX_PER_TEXT;
    results.push(result(one, found));
  }
  return [
    h("h1", {}, "Search"),
    h("p", {}, `${isCut ? "at least " : ""}${amount(hits, "place")} in ${amount(results.length, "text")}.`),
    h("ol", { class: "results" }, results),
  ];
}

function matches(text, pattern) {
  const found = [];
  for (const match of text.matchAll(pattern)) {
    found.push({ at: match.index, length: match[0].length });
    if (found.length === MAX_PER_TEXT) break;
  }
  return found;
}

function result({ name, text, link }, found) {
  const snippets = (hits) => hits.map((hit) => snippet(text, hit, link(hit.at, hit.length)));
  const words = ` ${found.length === MAX_PER_TEXT ? "at least " : ""}${amount(found.length, "place")}`;
  const more = found.slice(SNIPPETS);
  return h(
    "li",
    {},
    h("h2", {}, name, h("span", { class: "minor" }, words)),
    h("ul", {}, snippets(found.slice(0, SNIPPETS))),
    more.length ? moreSnippets(() => snippets(more), more.length) : null,
  );
}

// The further places of a text. They are made when the reader opens them.
function moreSnippets(make, number) {
  const list = h("ul", {});
  const fill = () => list.childElementCount || list.append(...make());
  return h("details", { ontoggle: fill }, h("summary", {}, amount(number, "more place")), list);
}

function snippet(text, { at, length }, link) {
  const part = (from, to) => visible(text.slice(from, to));
  const found = h("mark", { class: "found" }, part(at, at + length));
  const end = at + length;
  const words = ["… ", part(Math.max(0, at - AROUND), at), found, part(end, end + AROUND), " …"];
  return h("li", {}, h("a", link, h("bdi", {}, words)));
}
