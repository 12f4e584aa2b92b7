// The lineage as a picture: rounds from top to bottom, a box a trace, a line for each tail that was read.

import { amount, count, cut, flat, h, percent, svg, visible } from "./dom.js";
import { finalCount, traceId } from "./lineage.js";
import { ancestors, descendants } from "./story.js";

const HEIGHT = 50;
const GAP = 12;
const ROW = 118;
const LEFT = 74;
const DOT = 14;
const MOST_DOTS = 40;
const MORE = 64;

export const STATE_WORDS = {
  waiting: "not begun",
  running: "running",
  interrupted: "interrupted",
  done: "finished",
  "cut off": "cut off",
  "given up": "given up",
};
const STATE_SIGNS = { waiting: "·", running: "…", interrupted: "‖", done: "", "cut off": "✂", "given up": "✕" };

// Everything a listener hears of a trace.
export function describeTrace(view, trace) {
  const answer = trace.answer ? `answer ${visible(cut(flat(trace.answer), 80))}` : "no answer";
  const verdict = { true: ", right", false: ", wrong" }[view.verdict(trace)] ?? "";
  const reads = trace.parents.length ? `, reads ${trace.parents.join(", ")}` : "";
  const chosen = view.isWinner(trace) ? ", the run's answer" : "";
  return `${trace.id}, round ${trace.round}, ${view.stateWord(trace)}, ${amount(trace.tokens, "token")}, ${answer}${verdict}${chosen}${reads}`;
}

export function lineagePicture(view) {
  const { run } = view;
  const rows = layOut(run);
  const width = Math.max(...rows.map((row) => row.width), 300);
  const places = new Map();
  for (const row of rows) {
    let x = LEFT + (width - row.width) / 2;
    for (const item of row.items) {
      item.x = x;
      if (item.trace) places.set(item.trace.id, { x: x + row.box / 2, y: row.y });
      x += widthOf(item, row.box);
    }
  }
  const edges = drawEdges(view, places);
  const nodes = rows.flatMap((row) =>
    row.items.map((item) => drawItem(view, item, row)),
  );
  const labels = rows.map((row) => drawLabel(row));
  const height = rows.at(-1).y + HEIGHT + 12;
  const picture = svg(
    "svg",
    {
      class: "lineage",
      role: "group",
      "aria-label": "Lineage of the traces. Arrow keys move between them.",
      width: LEFT + width + GAP,
      height,
      viewBox: `0 0 ${LEFT + width + GAP} ${height}`,
    },
    svg("g", { class: "edges", "aria-hidden": "true" }, edges),
    nodes,
    labels,
  );
  listen(view, picture);
  return h("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": "Picture of the lineage" }, picture);
}

// The rows: needed traces as boxes, the others of the population as dots, in index order; of many the first.
function layOut(run) {
  const traces = run.all();
  const most = Math.max(...run.roundNumbers().map((round) => traces.filter((t) => t.round === round).length), 1);
  const box = most <= 8 ? 118 : most <= 16 ? 84 : 62;
  return run.roundNumbers().map((round, number) => {
    const here = traces.filter((trace) => trace.round === round);
    const population = populationOf(run, round);
    const dots = pruned(round, population, new Set(here.map((trace) => trace.id)));
    const items = [...here.map((trace) => ({ trace, index: trace.index })), ...dots].sort((a, b) => a.index - b.index);
    const more = population - items.length;
    if (more > 0) items.push({ more });
    const width = items.reduce((sum, item) => sum + widthOf(item, box), 0);
    return { round, items, box, needed: here.length, population, y: 10 + number * ROW, width };
  });
}

function widthOf(item, box) {
  return item.trace ? box + GAP : item.more ? MORE : DOT;
}

function pruned(round, population, needed) {
  const dots = [];
  for (let index = 0; index < population && dots.length < MOST_DOTS; index++)
    if (!needed.has(traceId(round, index))) dots.push({ index });
  return dots;
}

function populationOf(run, round) {
  const { rounds, population } = run.config;
  if (!run.isPlanned || round > rounds) return 0;
  return round === rounds ? finalCount(run.config) : population;
}

function drawLabel({ round, needed, population, y }) {
  return svg(
    "g",
    { class: "label" },
    svg("text", { x: 4, y: y + 20 }, `Round ${round}`),
    svg(
      "text",
      { x: 4, y: y + 36, class: "minor" },
      population > needed ? `${needed} of ${count(population)}` : amount(needed, "trace"),
    ),
  );
}

function drawItem(view, item, row) {
  if (item.trace) return drawNode(view, item, row);
  return item.more ? drawMore(item, row) : drawPruned(item, row);
}

function drawMore({ x, more }, row) {
  return svg(
    "text",
    { class: "minor more-pruned", x: x + 6, y: row.y + HEIGHT / 2 + 4 },
    `+ ${count(more)}`,
    svg("title", {}, `${amount(more, "further trace")} not needed`),
  );
}

function drawPruned(item, row) {
  return svg(
    "circle",
    { class: "pruned", cx: item.x + DOT / 2, cy: row.y + HEIGHT / 2, r: 3.5 },
    svg("title", {}, `${traceId(row.round, item.index)} was not needed: no final candidate descends from it`),
  );
}

function drawNode(view, item, row) {
  const { trace } = item;
  const width = row.box;
  const letters = Math.floor((width - 16) / 7);
  const verdict = view.verdict(trace);
  const kind = [
    "node",
    `is-${view.state(trace).replace(" ", "-")}`,
    view.isWinner(trace) && "winner",
    view.path?.carriers.has(trace.id) && "carrier",
    verdict === true && "right",
    verdict === false && "wrong",
  ];
  const sign = view.isWinner(trace) ? "★" : STATE_SIGNS[view.state(trace)];
  const share = trace.budget ? Math.min(trace.tokens / trace.budget, 1) : 0;
  const part = (tag, more, ...rest) => svg(tag, more, ...rest);
  return svg(
    "a",
    {
      class: kind.filter(Boolean).join(" "),
      href: `#/trace/${trace.id}`,
      "data-id": trace.id,
      "data-key": `node-${trace.id}`,
      tabindex: view.atNode(trace) ? 0 : -1,
      "aria-label": describeTrace(view, trace),
    },
    part("rect", { class: "box", x: item.x, y: row.y, width, height: HEIGHT, rx: 7 }),
    part("rect", { class: `class-${view.colour(trace)}`, x: item.x, y: row.y + 7, width: 5, height: HEIGHT - 14 }),
    part("text", { class: "id", x: item.x + 11, y: row.y + 17 }, trace.id),
    part(
      "text",
      { class: "sign", x: item.x + width - 8, y: row.y + 17, "text-anchor": "end" },
      [sign, verdict === true && "✓", verdict === false && "✗"].filter(Boolean).join(" "),
    ),
    part("text", { class: "answer", x: item.x + 11, y: row.y + 34 }, visible(cut(flat(trace.answer), letters)) || "–"),
    part("rect", { class: "budget", x: item.x + 11, y: row.y + HEIGHT - 8, width: width - 18, height: 3 }),
    part("rect", { class: "used", x: item.x + 11, y: row.y + HEIGHT - 8, width: (width - 18) * share, height: 3 }),
    part("title", {}, `${describeTrace(view, trace)}${trace.budget ? `, ${count(trace.budget)} allowed` : ""}`),
  );
}

function drawEdges(view, places) {
  const edges = [];
  for (const child of view.run.all()) {
    for (const parent of child.parents) {
      const from = places.get(parent);
      const to = places.get(child.id);
      if (!from || !to) continue;
      const middle = (ROW - HEIGHT) / 2;
      const y = from.y + HEIGHT;
      const key = `${parent}>${child.id}`;
      const kept = view.kept.get(key);
      const kind = ["edge", view.path?.edges.has(key) && "carried", !child.promptTokens && !child.prompt && "planned"];
      edges.push(
        svg(
          "path",
          {
            class: kind.filter(Boolean).join(" "),
            "data-edge": key,
            style: keptWidth(kept),
            d: `M${from.x} ${y} C${from.x} ${y + middle} ${to.x} ${to.y - middle} ${to.x} ${to.y}`,
          },
          kept === undefined ? null : svg("title", {}, `${child.id} kept ${percent(kept)} of ${parent}'s tail`),
        ),
      );
    }
  }
  return edges;
}

function keptWidth(kept) {
  return kept === undefined ? {} : { "stroke-width": `${1 + 4 * kept}px` };
}

// What a child kept of a tail has become known: its line gets its width.
export function thicken(picture, key, kept) {
  const edge = [...picture.querySelectorAll(".edge")].find((one) => one.dataset.edge === key);
  if (edge) edge.style.setProperty("stroke-width", keptWidth(kept)["stroke-width"]);
}

function listen(view, picture) {
  const light = (id) => {
    const family = id ? new Set([id, ...ancestors(view.run, id), ...descendants(view.run, id)]) : null;
    picture.classList.toggle("dimmed", family !== null);
    for (const node of picture.querySelectorAll(".node"))
      node.classList.toggle("lit", family?.has(node.dataset.id) ?? false);
    for (const edge of picture.querySelectorAll(".edge")) {
      const [parent, child] = edge.dataset.edge.split(">");
      edge.classList.toggle("lit", (family?.has(parent) && family.has(child)) ?? false);
    }
  };
  const idOf = (event) => event.target.closest(".node")?.dataset.id ?? null;
  picture.addEventListener("mouseover", (event) => light(idOf(event)));
  picture.addEventListener("mouseleave", () => light(null));
  picture.addEventListener("focusin", (event) => light(idOf(event)));
  picture.addEventListener("focusout", () => light(null));
  picture.addEventListener("keydown", (event) => move(view, picture, event));
}

// Left and right within a round, up to the first parent, down to the first child.
function move(view, picture, event) {
  const trace = view.run.trace(event.target.closest(".node")?.dataset.id);
  if (!trace) return;
  const row = view.run.all().filter((other) => other.round === trace.round);
  const at = row.indexOf(trace);
  const to = {
    ArrowLeft: () => row[at - 1],
    ArrowRight: () => row[at + 1],
    ArrowUp: () => view.run.trace(trace.parents[0]),
    ArrowDown: () => view.run.children(trace.id)[0],
  }[event.key]?.();
  if (!to) return;
  event.preventDefault();
  view.node = to.id;
  for (const node of picture.querySelectorAll(".node")) {
    node.setAttribute("tabindex", node.dataset.id === to.id ? "0" : "-1");
    if (node.dataset.id === to.id) node.focus();
  }
}
