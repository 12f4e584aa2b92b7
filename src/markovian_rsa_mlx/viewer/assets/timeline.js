// Which trace ran when: a row for each place in the batch, so that idle places show.

import { amount, duration, h, percent, svg } from "./dom.js";

const WIDTH = 960;
const LEFT = 60;
const BAR = 22;

export function timeline(view) {
  const { run } = view;
  if (!run.hasClock) {
    return h(
      "p",
      { class: "minor" },
      "This trail does not say when its traces ran (trails written before the event ",
      h("code", {}, "trace_clock"),
      " do not); the table has the seconds that each took.",
    );
  }
  const end = Math.max(run.elapsed, view.now?.() ?? 0, 1e-3);
  const rows = placeRows(spansOf(run, end));
  const limit = [run.resumes.at(-1)?.concurrency ?? run.config.concurrency, run.setup?.max_rows].find(Number.isInteger);
  const places = rows.length;
  const x = (s) => LEFT + (s / end) * (WIDTH - LEFT - 10);
  const height = places * (BAR + 4) + 30;
  const busy = rows.flat().reduce((sum, span) => sum + span.until - span.start, 0);
  const drawn = [
    ...Array.from({ length: places }, (_, i) =>
      svg(
        "g",
        {},
        svg("rect", { class: "idle", x: LEFT, y: i * (BAR + 4), width: WIDTH - LEFT - 10, height: BAR }),
        svg("text", { class: "minor", x: 4, y: i * (BAR + 4) + 15 }, `row ${i + 1}`),
      ),
    ),
    ...rows.flatMap((row, i) => row.map((span) => drawSpan(view, span, x, i * (BAR + 4)))),
    ...run.resumes.map((resume) =>
      svg(
        "line",
        { class: "resume", x1: x(resume.elapsed_before_s), x2: x(resume.elapsed_before_s), y1: 0, y2: height - 26 },
        svg("title", {}, "resumed"),
      ),
    ),
    ...ticks(end).map((s) =>
      svg(
        "g",
        {},
        svg("line", { class: "tick", x1: x(s), x2: x(s), y1: 0, y2: height - 26 }),
        svg("text", { class: "minor", x: x(s), y: height - 12, "text-anchor": s === 0 ? "start" : "middle" }, label(s)),
      ),
    ),
  ];
  const words =
    `${amount(places, "row")} of the batch were used${limit > places ? `, of ${limit} that there were` : ""}; ` +
    `busy ${percent(busy / (end * places))} of the time, ${(busy / end).toFixed(1)} traces at once on average.`;
  return h(
    "div",
    {},
    h(
      "div",
      { class: "scroller", tabindex: 0, role: "region", "aria-label": "Timeline of the traces" },
      svg(
        "svg",
        {
          class: "timeline",
          role: "group",
          "aria-label": `Timeline: ${words}`,
          width: WIDTH,
          height,
          viewBox: `0 0 ${WIDTH} ${height}`,
        },
        svg("g", { "aria-hidden": "true" }, drawn),
      ),
    ),
    h(
      "p",
      { class: "minor" },
      words,
      " Where a row is grey, nothing was decoded in it: it was idle, or a prompt was being read. ",
      run.resumes.length ? "A dashed line is where a sitting ended and the run was resumed." : "",
    ),
  );
}

function spansOf(run, end) {
  const spans = run.all().flatMap((trace) => trace.spans.map((span) => ({ ...span, trace, until: span.end ?? end })));
  return spans.sort((a, b) => a.start - b.start);
}

// Each span into the first row that is free by then.
function placeRows(spans) {
  const rows = [];
  for (const span of spans) {
    const row = rows.find((one) => one.at(-1).until <= span.start + 1e-3);
    if (row) row.push(span);
    else rows.push([span]);
  }
  return rows;
}

function drawSpan(view, span, x, y) {
  const width = Math.max(x(span.until) - x(span.start), 2);
  const what = `${span.trace.id}${span.purpose === "summary" ? ", its summary" : ""}${span.attempt ? `, attempt ${span.attempt + 1}` : ""}`;
  const words = `${what}: from ${label(span.start)} to ${label(span.until)}, ${duration(span.until - span.start)}, ${OUTCOMES[span.outcome] ?? span.outcome}`;
  return svg(
    "a",
    {
      href: `#/trace/${span.trace.id}`,
      class: `span round-${span.trace.round % 6} ${span.outcome} ${span.purpose}`,
      tabindex: -1,
    },
    svg("rect", { x: x(span.start), y, width, height: BAR, rx: 3 }),
    width > 42 ? svg("text", { x: x(span.start) + 5, y: y + 15 }, span.trace.id) : null,
    svg("title", {}, words),
  );
}

const OUTCOMES = {
  eos: "finished",
  max_tokens: "cut off",
  failed: "failed",
  interrupted: "interrupted",
  running: "running",
  "": "finished",
};

function label(s) {
  return s < 10 ? `${Number(s.toFixed(1))} s` : duration(s).replace(".0", "");
}

function ticks(end) {
  const step =
    [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400].find(
      (s) => end / s <= 9,
    ) ?? end / 8;
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, i) => i * step);
}
