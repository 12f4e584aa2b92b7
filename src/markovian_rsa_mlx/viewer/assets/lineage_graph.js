// The lineage as a graph: rounds from top to bottom, one box per trace, one line per tail that was read.

import { amount, count, oneLine, pannable, percent, svg } from "./dom.js";
import { traceId } from "./run.js";

const HEIGHT = 50;
const ROW = 118;
const LEFT = 74;
const RIGHT = 12;
const SMALLEST = 0.7; // the scale below which the graph is panned and not shrunk
const DOT = 14;
const MAX_DOTS = 40;
const MORE = 64;

export const STATE_WORDS = {
  waiting: "not started",
  running: "running",
  interrupted: "interrupted",
  done: "finished",
  truncated: "cut off",
  failed: "failed",
  cancelled: "cancelled",
};
const STATE_SIGNS = { waiting: "·", running: "…", interrupted: "‖", done: "", truncated: "✂", failed: "✕", cancelled: "–" };

// All facts of a box in words, for screen readers.
function describeTrace(view, trace) {
  const verdict = { true: ", right", false: ", wrong" }[view.verdict(trace)] ?? "";
  return [
    `${trace.id}, round ${trace.round}, ${view.stateWord(trace)}, ${amount(view.tokens(trace), "token")}`,
    trace.answer ? `, answer ${oneLine(trace.answer, 80)}` : ", no answer",
    verdict,
    view.isWinner(trace) ? ", the answer of the run" : "",
    trace.parents.length ? `, reads ${trace.parents.join(", ")}` : "",
  ].join("");
}

export function lineageGraph(view) {
  const rows = layOut(view.run);
  const width = Math.max(...rows.map((row) => row.width), 300);
  const places = new Map();
  for (const row of rows) {
    let x = LEFT + (width - row.width) / 2;
    for (const item of row.items) {
      item.x = x;
      if (item.trace) places.set(item.trace.id, { x: x + row.box / 2, y: row.y });
      x += widthOf(item, row);
    }
  }
  const total = { width: LEFT + width + RIGHT, height: rows.at(-1).y + HEIGHT + 12 };
  const graph = svg(
    "svg",
    {
      class: "lineage",
      role: "group",
      "aria-label": "Lineage of the traces. Arrow keys move between them.",
      viewBox: `0 0 ${total.width} ${total.height}`,
      style: { "max-width": `${total.width}px`, "min-width": `${Math.round(SMALLEST * total.width)}px` },
    },
    svg("g", { class: "edges", "aria-hidden": "true" }, drawEdges(view, places)),
    rows.flatMap((row) => row.items.map((item) => drawItem(view, item, row))),
    rows.map((row) => drawLabel(row)),
  );
  listen(view, graph);
  return pannable("Graph of the lineage", graph);
}

// The rows: needed traces as boxes, the others of the population as dots, in index order. Of many dots only the first.
function layOut(run) {
  const byRound = run.roundNumbers().map((round) => run.all().filter((trace) => trace.round === round));
  const largest = Math.max(...byRound.map((traces) => traces.length), 1);
  const [box, gap] = largest <= 8 ? [118, 12] : largest <= 16 ? [66, 8] : [44, 5];
  return byRound.map((traces, number) => {
    const { round } = traces[0];
    const population = populationOf(run, round);
    const needed = new Set(traces.map((trace) => trace.index));
    const items = traces.map((trace) => ({ trace, index: trace.index }));
    for (let index = 0; index < population && items.length < traces.length + MAX_DOTS; index++)
      if (!needed.has(index)) items.push({ index });
    items.sort((a, b) => a.index - b.index);
    const more = population - items.length;
    if (more > 0) items.push({ more });
    const width = items.reduce((sum, item) => sum + widthOf(item, { box, gap }), 0);
    return { round, items, box, gap, needed: traces.length, population, y: 10 + number * ROW, width };
  });
}

function widthOf(item, { box, gap }) {
  return item.trace ? box + gap : item.more ? MORE : DOT;
}

function populationOf(run, round) {
  const { rounds, population } = run.config;
  if (!run.isPlanned || round > rounds) return 0;
  if (round === rounds) return run.start.final_count;
  return Array.isArray(population) ? population[round] : population;
}

function drawLabel({ round, needed, population, y }) {
  const words = population > needed ? `${needed} of ${count(population)}` : amount(needed, "trace");
  return svg(
    "g",
    { class: "label" },
    svg("text", { x: 4, y: y + 20 }, `Round ${round}`),
    svg("text", { x: 4, y: y + 36, class: "minor" }, words),
  );
}

function drawItem(view, item, row) {
  if (item.trace) return drawNode(view, item, row);
  const middle = row.y + HEIGHT / 2;
  if (item.more) {
    const title = svg("title", {}, `${amount(item.more, "further trace")} not needed`);
    return svg("text", { class: "minor more-pruned", x: item.x + 6, y: middle + 4 }, `+ ${count(item.more)}`, title);
  }
  const title = `${traceId(row.round, item.index)} was not needed: no final candidate descends from it`;
  return svg("circle", { class: "pruned", cx: item.x + DOT / 2, cy: middle, r: 3.5 }, svg("title", {}, title));
}

function drawNode(view, { trace, x }, { box: width, y }) {
  const verdict = view.verdict(trace);
  const isWinner = view.isWinner(trace);
  const kinds = [
    "node",
    `is-${view.state(trace)}`,
    `class-${view.colourOf(trace.key)}`,
    isWinner && "winner",
    view.run.path?.carriers.has(trace.id) && "carrier",
    verdict === true && "right",
    verdict === false && "wrong",
  ];
  const signs = [isWinner && "★", STATE_SIGNS[view.state(trace)], verdict && "✓", verdict === false && "✗"];
  const share = trace.maxTokens ? Math.min(view.tokens(trace) / trace.maxTokens, 1) : 0;
  const words = describeTrace(view, trace);
  const inset = width < 60 ? 8 : 11;
  const bar = { x: x + inset, y: y + HEIGHT - 8, height: 3 };
  const text = (name, dy, content) => svg("text", { class: name, x: x + inset, y: y + dy }, content);
  return svg(
    "a",
    {
      class: kinds.filter(Boolean).join(" "),
      href: `#/trace/${trace.id}`,
      "data-id": trace.id,
      "data-key": `node-${trace.id}`,
      tabindex: view.isTabStop(trace) ? 0 : -1,
      "aria-label": words,
    },
    svg("rect", { class: "box", x, y, width, height: HEIGHT, rx: 7 }),
    svg("rect", { class: "answer-class", x, y: y + 7, width: 5, height: HEIGHT - 14 }),
    text("id", 17, trace.id),
    svg("text", { class: "sign", x: x + width - 4, y: y + (width < 80 ? -3 : 17), "text-anchor": "end" }, signs.filter(Boolean).join(" ")),
    text("answer", 34, oneLine(trace.answer, Math.floor((width - inset - 3) / 7)) || "–"),
    svg("rect", { class: "limit", ...bar, width: width - inset - 7 }),
    svg("rect", { class: "used", ...bar, width: (width - inset - 7) * share }),
    svg("title", {}, `${words}${trace.maxTokens ? `, ${count(trace.maxTokens)} allowed` : ""}`),
  );
}

function drawEdges(view, places) {
  const carriers = view.run.path?.carriers;
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
      const isCarried = carriers?.has(parent) && carriers.has(child.id);
      const kinds = ["edge", isCarried && `carried class-${view.colourOf(child.key)}`, !child.promptTokens && !child.prompt && "planned"];
      const attributes = {
        class: kinds.filter(Boolean).join(" "),
        "data-edge": key,
        style: kept === undefined ? {} : { "stroke-width": strokeWidth(kept) },
        d: `M${from.x} ${y} C${from.x} ${y + middle} ${to.x} ${to.y - middle} ${to.x} ${to.y}`,
      };
      const title = kept === undefined ? null : `${child.id} kept ${percent(kept)} of the tail of ${parent}`;
      edges.push(svg("path", attributes, title && svg("title", {}, title)));
    }
  }
  return edges;
}

function strokeWidth(kept) {
  return `${1 + 4 * kept}px`;
}

// Draw the share of a tail that a child kept, once it is known: as the width of the line.
export function thicken(page, key, kept) {
  const edge = [...page.querySelectorAll(".edge")].find((one) => one.dataset.edge === key);
  if (edge) edge.style.setProperty("stroke-width", strokeWidth(kept));
}

function listen(view, graph) {
  const light = (id) => {
    const family = id ? view.run.family(id) : null;
    graph.classList.toggle("dimmed", family !== null);
    for (const node of graph.querySelectorAll(".node"))
      node.classList.toggle("lit", family?.has(node.dataset.id) ?? false);
    for (const edge of graph.querySelectorAll(".edge")) {
      const ends = edge.dataset.edge.split(">");
      edge.classList.toggle("lit", family !== null && ends.every((end) => family.has(end)));
    }
  };
  const idOf = (event) => event.target.closest(".node")?.dataset.id ?? null;
  graph.addEventListener("mouseover", (event) => light(idOf(event)));
  graph.addEventListener("mouseleave", () => light(null));
  graph.addEventListener("focusin", (event) => light(idOf(event)));
  graph.addEventListener("focusout", () => light(null));
  graph.addEventListener("keydown", (event) => moveFocus(view, graph, event));
}

// Left and right within a round, up to the first parent, down to the first child.
function moveFocus(view, graph, event) {
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
  for (const node of graph.querySelectorAll(".node")) {
    node.setAttribute("tabindex", node.dataset.id === to.id ? "0" : "-1");
    if (node.dataset.id === to.id) node.focus();
  }
}
