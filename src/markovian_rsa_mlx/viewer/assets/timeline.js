// The time of each generation: one row per place in the batch, so that idle places are visible.

import { amount, duration, h, percent, scroller, svg } from "./dom.js";

const WIDTH = 960;
const LEFT = 60;
const BAR = 22;
const STEP = BAR + 4;

export function timeline(view) {
  const { run } = view;
  if (!run.hasClock) {
    const event = h("code", {}, "trace_clock");
    const words = ["This trail has no times of generations (", event, " events). The table has the seconds of each trace."];
    return h("p", { class: "minor" }, words);
  }
  const end = Math.max(run.elapsed, 1e-3);
  const rows = packRows(spansOf(run, end));
  const x = (s) => LEFT + (s / end) * (WIDTH - LEFT - 10);
  const bottom = rows.length * STEP + 4;
  const line = (kind, s, ...title) => svg("line", { class: kind, x1: x(s), x2: x(s), y1: 0, y2: bottom }, title);
  const drawn = [
    rows.map((_, i) => [
      svg("rect", { class: "idle", x: LEFT, y: i * STEP, width: WIDTH - LEFT - 10, height: BAR }),
      svg("text", { class: "minor", x: 4, y: i * STEP + 15 }, `row ${i + 1}`),
    ]),
    rows.flatMap((row, i) => row.map((span) => drawSpan(view, span, x, i * STEP))),
    run.resumes.map((resume) => line("resume", resume.elapsed_before_s, svg("title", {}, "resumed"))),
    ticks(end).map((s) => {
      const place = { class: "minor", x: x(s), y: bottom + 14, "text-anchor": s === 0 ? "start" : "middle" };
      return [line("tick", s), svg("text", place, label(s))];
    }),
  ];
  const words = usage(run, rows, end);
  const size = { viewBox: `0 0 ${WIDTH} ${bottom + 26}` };
  const attributes = { class: "timeline", role: "group", "aria-label": `Timeline: ${words}`, ...size };
  const resumed = run.resumes.length ? " A dashed line is the end of a session: the run was resumed there." : "";
  const idle = " Where a row is grey, no token was decoded in it: it was idle, or a prompt was being read.";
  return h(
    "div",
    {},
    scroller("Timeline of the traces", svg("svg", attributes, svg("g", { "aria-hidden": "true" }, drawn))),
    h("p", { class: "minor" }, words, idle, resumed),
  );
}

function usage(run, rows, end) {
  const limits = [run.resumes.at(-1)?.concurrency ?? run.config.concurrency, run.setup?.max_rows];
  const limit = limits.find(Number.isInteger);
  const busy = rows.flat().reduce((sum, span) => sum + span.until - span.start, 0);
  const available = limit > rows.length ? `, of ${limit} available` : "";
  const average = (busy / end).toFixed(1);
  return (
    `${amount(rows.length, "row")} of the batch were used${available}; ` +
    `busy ${percent(busy / (end * rows.length))} of the time, ${average} concurrent traces on average.`
  );
}

function spansOf(run, end) {
  const spans = run.all().flatMap((trace) => trace.spans.map((span) => ({ ...span, trace, until: span.end ?? end })));
  return spans.sort((a, b) => a.start - b.start);
}

// Put each span into the first row that is free by its start.
function packRows(spans) {
  const rows = [];
  for (const span of spans) {
    const row = rows.find((one) => one.at(-1).until <= span.start + 1e-3);
    if (row) row.push(span);
    else rows.push([span]);
  }
  return rows;
}

function drawSpan(view, span, x, y) {
  const { trace, start, until, outcome, purpose, attempt } = span;
  const width = Math.max(x(until) - x(start), 2);
  const name = [trace.id, purpose === "summary" && "its summary", attempt && `attempt ${attempt + 1}`];
  const times = `from ${label(start)} to ${label(until)}, ${duration(until - start)}`;
  const title = `${name.filter(Boolean).join(", ")}: ${times}, ${OUTCOMES[outcome] ?? outcome}`;
  const kind = `span class-${view.colourOf(trace.key)} ${outcome} ${purpose}`;
  return svg(
    "a",
    { href: `#/trace/${trace.id}`, class: kind, tabindex: -1 },
    svg("rect", { x: x(start), y, width, height: BAR, rx: 3 }),
    width > 42 ? svg("text", { x: x(start) + 5, y: y + 15 }, trace.id) : null,
    svg("title", {}, title),
  );
}

const OUTCOMES = { eos: "finished", max_tokens: "cut off", "": "finished" };

function label(s) {
  return s < 10 ? `${Number(s.toFixed(1))} s` : duration(s).replace(".0", "");
}

const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400];

function ticks(end) {
  const step = STEPS.find((s) => end / s <= 9) ?? end / 8;
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, i) => i * step);
}
