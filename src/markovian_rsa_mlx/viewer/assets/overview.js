// The first page: the answer and how it came about, the lineage, shares, timeline, table, mishaps, settings.

import { answer } from "./answer.js";
import { amount, count, duration, h, said, size } from "./dom.js";
import { finalCount } from "./lineage.js";
import { lineagePicture } from "./picture.js";
import { sharesChart } from "./shares.js";
import { traceLink, traceTable } from "./table.js";
import { textView } from "./text.js";
import { timeline } from "./timeline.js";

export function overview(view) {
  const { run } = view;
  return [
    problems(view),
    section(
      "question",
      "Question",
      run.start ? textView(run.start.prompt) : missing("The file has no run_start, so the question is not known."),
      otherMessages(run),
    ),
    section("answer", "Answer", answer(view)),
    section("figures", "Cost", figures(view)),
    run.traces.size
      ? section("lineage", "Lineage", legend(view), lineagePicture(view))
      : section("lineage", "Lineage", missing("No trace has begun.")),
    run.traces.size ? section("shares", "The answers, round by round", sharesChart(view)) : null,
    section("timeline", "Timeline", timeline(view)),
    section("traces", "All traces", traceTable(view)),
    section("mishaps", "Retries, errors, resumes", mishaps(view)),
    section("settings", "Settings", settings(view)),
  ];
}

function section(id, title, ...content) {
  return h("section", { "aria-labelledby": `${id}-title`, id }, h("h2", { id: `${id}-title` }, title), content);
}

function missing(text) {
  return h("p", { class: "missing" }, text);
}

function problems(view) {
  const { run, about } = view;
  const notes = (about.problems ?? []).map(({ line, reason, shown }) =>
    h(
      "li",
      {},
      line ? `Line ${count(line)}: ` : "",
      said(reason, 300),
      shown ? " (shown as far as it can be)" : " (left out)",
    ),
  );
  const gaps = [];
  if (!run.setup && run.start)
    gaps.push("There is no run_setup: prompts are shown as recorded, and where the thinking ends is not known.");
  if (!run.finished && !view.running) {
    const again = run.setup ? " The same command with this file goes on from here." : "";
    gaps.push(
      (run.selection ?? run.final)
        ? "The file ends before its run_end: how long the run took is known as far as its traces tell."
        : `The run did not finish: no answer was chosen.${again}`,
    );
  }
  if (run.setup && !run.isPlanned)
    gaps.push("Which traces the run needs cannot be drawn from its settings, or are too many: only those that are written of are shown.");
  for (const [name, times] of run.unknown)
    gaps.push(h("span", {}, `${amount(times, "line")} of the unknown type `, said(name, 40), " left out."));
  if (!notes.length && !gaps.length) return null;
  return h(
    "section",
    { class: "problems", "aria-label": "What is missing" },
    notes.length ? [h("h2", {}, "The file is damaged"), h("ul", {}, notes)] : null,
    gaps.map((gap) => h("p", {}, gap)),
  );
}

function otherMessages(run) {
  const before = run.setup?.messages?.slice(0, -1) ?? [];
  if (!before.length) return null;
  return h(
    "details",
    {},
    h("summary", {}, `${amount(before.length, "message")} before it`),
    before.map(({ role, content }) => [h("h3", {}, said(role, 30)), textView(content)]),
  );
}

function figures(view) {
  const { run } = view;
  const ended = run.all().filter((trace) => trace.elapsed !== null);
  const { population, rounds, answer_selection } = run.config;
  const all = run.isPlanned
    ? population * rounds + finalCount(run.config) + (answer_selection === "final_aggregation" ? 1 : 0)
    : null;
  const facts = [
    ["Tokens", count(run.tokens)],
    ["Time", duration(run.elapsed || longest(ended))],
    ["Peak memory", run.end ? size(run.end.peak_memory_bytes) : "not known yet"],
    [
      "Traces",
      `${ended.length} of ${run.traces.size}${all > run.traces.size ? `; ${count(all - run.traces.size)} more were not needed` : ""}`,
    ],
    ["Cut off", count(run.all().filter((trace) => trace.state === "cut off").length)],
    view.knowsRight()
      ? ["Right", `${run.all().filter((trace) => view.verdict(trace)).length} of ${ended.length}`]
      : null,
  ];
  return h(
    "dl",
    { class: "facts" },
    facts.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

function longest(traces) {
  return Math.max(0, ...traces.map((trace) => trace.elapsed));
}

function legend(view) {
  return h(
    "p",
    { class: "minor" },
    "Each box is a trace; a line leads from each trace whose tail was read to its reader, thicker the more of the tail was kept. ",
    "★ is the run’s answer; its way is drawn in colour. ✂ was cut off by its budget, ✕ was given up; a dot was not needed: nobody would have read it.",
    view.knowsRight() ? " ✓ and ✗ say right and wrong." : "",
  );
}

function mishaps(view) {
  const { run } = view;
  const notes = [
    ...run.resumes.map((event) =>
      h(
        "li",
        {},
        `Resumed ${when(event.created_at)} after ${duration(event.elapsed_before_s)}`,
        event.dropped_bytes ? `; a torn last line of ${amount(event.dropped_bytes, "byte")} was cut off` : "",
      ),
    ),
    ...run.retries.map((event) =>
      h(
        "li",
        {},
        traceLink(event.trace_id),
        event.purpose === "summary" ? " (its summary)" : "",
        ` was tried again (attempt ${event.attempt + 1}): `,
        said(event.message, 400),
      ),
    ),
    ...run.errors.map((event) => h("li", { class: "wrong" }, said(event.stage, 30), ": ", said(event.message, 600))),
  ];
  return notes.length ? h("ul", {}, notes) : h("p", {}, "None.");
}

function when(iso) {
  return `${iso.slice(0, 19).replace("T", " ")} UTC`;
}

const SYMBOLS = {
  rounds: "T",
  population: "N",
  aggregation_size: "C",
  thinking_tokens: "beta",
  tail_tokens: "tau",
  final_candidates: "F",
};

// A seed may be too large for a JavaScript number; where one was set, it is the run's.
function exactSeed({ about, run }, value) {
  return about.seed ?? run.setup?.seed ?? String(value);
}

function settings(view) {
  const { run } = view;
  const { start, setup } = run;
  const rows = Object.entries(run.config).map(([name, value]) => [
    SYMBOLS[name] ? `${name} (${SYMBOLS[name]})` : name,
    value === null ? "unset" : name === "seed" ? exactSeed(view, value) : String(value),
  ]);
  const about = [
    ["run", start?.run_id],
    ["begun", start ? when(start.created_at) : null],
    ["model", start?.model_id],
    ["quantization", start?.quantization],
    ["seed", setup?.seed],
    ["engine", setup ? `${setup.engine} ${setup.engine_version}, ${setup.dtype}` : null],
    ["template", setup?.template_name],
    ["package", setup?.package_version],
    ["file", view.about.path ?? view.about.name],
  ].filter(([, value]) => value);
  const list = (pairs) =>
    h(
      "dl",
      { class: "settings" },
      pairs.map(([name, value]) => h("div", {}, h("dt", {}, said(name, 40)), h("dd", {}, said(String(value), 200)))),
    );
  return [list(about), h("details", {}, h("summary", {}, "All settings"), list(rows))];
}
