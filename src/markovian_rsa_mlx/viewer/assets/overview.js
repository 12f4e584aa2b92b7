// The first page: question, answer, cost, lineage, shares of the answers, timeline, traces, errors, settings.

import { answerSection } from "./answer_section.js";
import { answerShares } from "./answer_shares.js";
import { amount, count, definitions, duration, h, missing, modelText, percent, size } from "./dom.js";
import { lineageGraph } from "./lineage_graph.js";
import { runningTable, traceLink, traceTable } from "./table.js";
import { textView } from "./text.js";
import { timeline } from "./timeline.js";

export function overview(view) {
  const { run } = view;
  const hasTraces = run.traces.size > 0;
  const running = runningTable(view);
  const question = run.start ? textView(run.start.prompt) : missing("The file has no run_start: the question is unknown.");
  return [
    problems(view),
    section("question", "Question", question, otherMessages(run)),
    section("answer", "Answer", answerSection(view)),
    section("figures", "Cost", figures(view)),
    section("lineage", "Lineage", hasTraces ? [legend(view), lineageGraph(view)] : missing("No trace has started.")),
    running && section("running", "Running now", running),
    hasTraces && !view.run.isOpen ? section("shares", "Answers per round", answerShares(view)) : null,
    section("timeline", "Timeline", timeline(view)),
    section("traces", "All traces", traceTable(view)),
    section("errors", "Retries, errors, resumes", errors(run)),
    section("settings", "Settings", settings(view)),
  ];
}

function section(id, title, ...content) {
  return h("section", { "aria-labelledby": `${id}-title`, id }, h("h2", { id: `${id}-title` }, title), content);
}

function problems({ run, about, running }) {
  const damaged = (about.problems ?? []).map(({ line, reason, shown }) => {
    const outcome = shown ? " (shown as far as possible)" : " (left out)";
    return h("li", {}, line ? `Line ${count(line)}: ` : "", modelText(reason, 300), outcome);
  });
  const gaps = [];
  if (!run.setup && run.start)
    gaps.push("There is no run_setup: prompts are shown as recorded, and the end of the thinking is unknown.");
  if (!run.finished && !running) {
    const resume = run.setup ? " The same command with this file resumes it." : "";
    gaps.push(
      (run.selection ?? run.final)
        ? "The file ends before its run_end: the time is only known as far as its traces record it."
        : `The run did not finish: no answer was chosen.${resume}`,
    );
  }
  if (run.setup && !run.isPlanned)
    gaps.push("Only the traces in the file are shown: its settings are invalid, or the run has too many traces to list.");
  for (const [name, times] of run.unknown)
    gaps.push([`${amount(times, "line")} of the unknown type `, modelText(name, 40), " left out."]);
  if (!damaged.length && !gaps.length) return null;
  return h(
    "section",
    { class: "problems", "aria-label": "Missing parts" },
    damaged.length ? [h("h2", {}, "The file is damaged"), h("ul", {}, damaged)] : null,
    gaps.map((gap) => h("p", {}, gap)),
  );
}

function otherMessages(run) {
  const others = run.otherMessages();
  if (!others.length) return null;
  const messages = others.map(({ role, text }) => [h("h3", {}, modelText(role, 30)), textView(text)]);
  const places = [...new Set(others.map(({ place }) => place))].join(" and ");
  return h("details", {}, h("summary", {}, `${amount(others.length, "message")} ${places} it`), messages);
}

function figures(view) {
  const { run } = view;
  const ended = run.all().filter((trace) => trace.took !== null);
  const longest = Math.max(0, ...ended.map((trace) => trace.took));
  const progress = view.running ? view.progress : null;
  const { population, rounds, answer_selection } = run.config;
  const aggregators = answer_selection === "final_aggregation" ? 1 : 0;
  const early = Array.isArray(population) ? population.slice(0, rounds).reduce((sum, n) => sum + n, 0) : population * rounds;
  const total = run.isPlanned ? early + run.start.final_count + aggregators : 0;
  const pruned = total - run.traces.size;
  const right = run.all().filter((trace) => view.verdict(trace)).length;
  return definitions("facts", [
    ["Tokens", count(run.tokens + run.all().reduce((sum, trace) => sum + view.tokens(trace) - trace.tokens, 0))],
    progress && ["Speed", `${progress.speed.toFixed(1)} tokens/s`],
    progress && progress.left_s !== null && ["Time left", timeLeft(progress)],
    ...times(run, longest),
    run.drafted ? ["Guessed tokens", `${count(run.accepted)} of ${count(run.drafted)} accepted`] : null,
    ["Peak memory", run.end ? size(run.end.peak_memory_bytes) : "not known yet"],
    ["Traces", `${count(ended.length)} of ${count(run.traces.size)}${pruned > 0 ? `; ${count(pruned)} more were not needed` : ""}`],
    run.stopped ? ["Stopped early", `the leader would stay with probability ${percent(run.stopped.probability)}`] : null,
    ["Cut off", count(run.all().filter((trace) => trace.state === "truncated").length)],
    view.hasVerdicts() ? ["Right", `${count(right)} of ${count(ended.length)}`] : null,
  ]);
}

// The time of the run, and its parts where it waited. All three are rounded from the total so that they add up.
function times(run, longest) {
  const total = run.elapsed || longest;
  const waiting = Math.min(run.waitedWhole, total);
  if (waiting < 0.05) return [["Total time", duration(total)]];
  const steps = total < 60 ? 10 : 1; // per second, as the total is shown
  const [whole, part] = [total, waiting].map((s) => Math.round(steps * s));
  const shown = (n) => (total < 60 ? duration(n / steps) : duration(n).replace(".0 s", " s"));
  return [["Generating", shown(whole - part)], ["Waiting", shown(part)], ["Total time", duration(total)]];
}

function timeLeft({ left_s, is_limit }) {
  return left_s < 1 ? "under 1 s" : `${is_limit ? "at most" : "about"} ${duration(left_s)}`;
}

function legend(view) {
  return h(
    "p",
    { class: "minor" },
    "A box is a trace. A line leads from a trace whose tail was read to its reader, thicker the more of it was kept. A colour is an ",
    "answer. ★ is the answer of the run; its path is thick. ✂ was cut off at max_tokens, ✕ failed. A dot was not needed: no final ",
    "candidate descends from it.",
    view.hasVerdicts() ? " ✓ is right, ✗ is wrong." : "",
  );
}

function errors(run) {
  const resumes = run.resumes.map((event) => {
    const torn = event.dropped_bytes ? `; removed ${amount(event.dropped_bytes, "byte")} of a torn last line` : "";
    return h("li", {}, `Resumed ${utc(event.created_at)} after ${duration(event.elapsed_before_s)}${torn}`);
  });
  const retries = run.retries.map((event) => {
    const purpose = event.purpose === "summary" ? " (its summary)" : "";
    const words = `${purpose} was retried (attempt ${event.attempt + 1}): `;
    return h("li", {}, traceLink(event.trace_id), words, modelText(event.message, 400));
  });
  const failures = run.errors.map((event) =>
    h("li", { class: "wrong" }, modelText(event.stage, 30), ": ", modelText(event.message, 600)),
  );
  const notes = [...resumes, ...retries, ...failures];
  return notes.length ? h("ul", {}, notes) : h("p", {}, "None.");
}

function utc(iso) {
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

function settings({ run, about }) {
  const { start, setup } = run;
  const facts = [
    ["run", start?.run_id],
    ["started", start && utc(start.created_at)],
    ["model", start?.model_id],
    ["quantization", start?.quantization],
    ["seed", setup?.seed],
    ["engine", setup && `${setup.engine} ${setup.engine_version}, ${setup.dtype}`],
    ["template", setup?.template_name],
    ["package", setup?.package_version],
    ["file", about.path ?? about.name],
  ].filter(([, value]) => value);
  const all = Object.entries(run.config).map(([name, value]) => {
    const exact = name === "seed" ? (about.seed ?? setup?.seed ?? value) : value; // too large for a JavaScript number
    const text = typeof exact === "object" ? JSON.stringify(exact) : exact; // marks, a JSON Schema
    return [SYMBOLS[name] ? `${name} (${SYMBOLS[name]})` : name, value === null ? "unset" : text];
  });
  const list = (pairs) =>
    definitions("settings", pairs.map(([name, value]) => [modelText(name, 40), modelText(String(value), 200)]));
  return [list(facts), h("details", {}, h("summary", {}, "All settings"), list(all))];
}
