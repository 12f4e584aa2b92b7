// The page of one trace: its prompt, its reasoning, its tail, its answer.

import { amount, count, definitions, downloadButton, duration, h, listed, missing, modelText, percent } from "./dom.js";
import { partOf } from "./search_index.js";
import { sharedRuns } from "./shared_spans.js";
import { tokensOf, traceLink, verdictSign } from "./table.js";
import { placedText, summarySection, tailSection } from "./tail_section.js";
import { textView } from "./text.js";
import { rebuildPrompt } from "./text_store.js";

export async function tracePage(view, id, found = null) {
  const trace = view.run.trace(id);
  if (!trace) return [h("h1", {}, "No such trace"), h("p", {}, "This run has no trace ", modelText(id, 30), ".")];
  const text = await view.texts.get(trace.text);
  const shared = await view.shared(trace);
  const place = partOf(location.hash);
  return [
    heading(view, trace),
    facts(view, trace),
    h("section", { id: "prompt" }, h("h2", {}, "Prompt"), await promptOf(view, trace, shared, text, place)),
    ...traceText(view, trace, text, shared, found),
    await tailSection(view, trace, place),
    await summarySection(view, trace, place),
  ];
}

function heading(view, trace) {
  const all = view.run.all();
  const at = all.indexOf(trace);
  const step = (other, rel) =>
    other && h("a", { href: `#/trace/${other.id}`, rel }, rel === "prev" ? `← ${other.id}` : `${other.id} →`);
  const others = all.filter((other) => other !== trace && other.chars);
  const choose = h(
    "select",
    {
      "aria-label": "Compare with another trace",
      onchange: (event) => (location.hash = `#/compare/${trace.id}/${event.target.value}`),
    },
    h("option", { value: "", disabled: true, selected: true }, "Compare with …"),
    others.map((other) => h("option", { value: other.id }, other.id)),
  );
  const load = () => view.texts.get(trace.text);
  return h(
    "div",
    { class: "heading" },
    h("h1", {}, `Trace ${trace.id}`, view.isWinner(trace) ? " ★" : ""),
    h(
      "nav",
      { "aria-label": "Traces", class: "tools" },
      h("a", { href: "#/" }, "Overview"),
      step(all[at - 1], "prev"),
      step(all[at + 1], "next"),
      choose,
      trace.chars ? downloadButton("Download text", `${trace.id}.txt`, load) : null,
    ),
  );
}

function facts(view, trace) {
  const links = (ids) => listed(ids.map((id) => traceLink(id)));
  const children = view.run.children(trace.id).map((child) => child.id);
  const { retries } = trace;
  const compared = trace.compared.map(([one, other, verdict]) => `${one} and ${other}: ${verdict}`);
  const messages = () => listed(retries.map((retry) => modelText(retry.message, 200)));
  return definitions("facts", [
    ["State", [view.stateWord(trace), view.isWinner(trace) ? ": its answer is that of the run" : ""]],
    ["Answer", trace.answer ? [modelText(trace.answer, 200), trace.weak ? " (weak) " : " ", verdictSign(view.verdict(trace))] : "none"],
    ["Tokens", tokensOf(view, trace)],
    ["Speed", view.live(trace) ? `${view.live(trace).speed} tokens/s` : null],
    ["Prompt", trace.promptTokens === null ? null : amount(trace.promptTokens, "token")],
    ["Mean log-probability", trace.confidence ? confidence(trace.confidence) : null],
    ["Generating", trace.took === null ? null : duration(trace.took)],
    ["Waiting", view.run.waited(trace) === null ? null : duration(view.run.waited(trace))],
    ["Seed", trace.seed],
    [trace.inherited ? "Inherited from" : "Read", trace.parents.length ? links(trace.parents) : "only the question"],
    ["Answers compared", compared.length ? compared.join("; ") : null],
    ["Was read by", children.length ? links(children) : "no trace"],
    ["Attempts", retries.length ? [`${retries.length + 1}; `, messages()] : null],
  ]);
}

// The figures are of drawn tokens in the model's own distribution.
function confidence({ mean_logprob: mean, lowest_window_logprob: lowest }) {
  return `${mean.toFixed(3)} per token; lowest over 256 tokens: ${lowest.toFixed(3)}`;
}

async function promptOf(view, trace, shared, text, place) {
  const { run, texts } = view;
  const save = (prompt) => downloadButton("Download prompt", `${trace.id}-prompt.txt`, prompt);
  if (trace.round === 0 && !trace.parents.length) {
    if (!run.setup) return missing("The trail does not have the prompt of round 0.");
    return [placedText(run.setup.prompt_text, [], "Prompt", place, "prompt"), save(run.setup.prompt_text)];
  }
  if (trace.inherited) return missing("It has none: its parents agree, so it was not generated.");
  if (!trace.prompt) return missing("Its prompt is not written yet: it waits for the traces that it reads.");
  const tails = shared.map(({ tail }) => tail);
  const parts = trace.prompt.rebuilt
    ? rebuildPrompt(run.setup, trace.prompt, tails)
    : splitPrompt(await texts.get(`${trace.id}/prompt`), tails);
  let end = 0;
  const shown = parts.map((part) => {
    const from = end;
    end += part.text.length;
    const show = (marks, label) => placedText(part.text, marks, label, place, "prompt", from);
    return part.slot === null ? show([], null) : tailFigure(view, trace, shared[part.slot], part, text, show);
  });
  return [...shown, save(parts.map((part) => part.text).join(""))];
}

// The parts of a recorded prompt: its tails are looked for in their order.
function splitPrompt(text, tails) {
  const parts = [];
  let done = 0;
  tails.forEach((tail, slot) => {
    const at = tail ? text.indexOf(tail, done) : -1;
    if (at < 0) return;
    parts.push({ text: text.slice(done, at), slot: null }, { text: tail, slot });
    done = at + tail.length;
  });
  return [...parts, { text: text.slice(done), slot: null }];
}

// The colour is that of the answer of the parent, the line under the text stands for its place in the prompt.
function keptMark(view, parent, from, to, slot, title) {
  const colour = view.colourOf(view.run.trace(parent)?.key);
  return { from, to, kind: `kept class-${colour} slot-${slot % 4}`, colour, title };
}

function tailFigure(view, trace, { parent, runs, tail }, { slot, text }, traceText, show) {
  const kept = view.kept.get(`${parent}>${trace.id}`) ?? 0;
  const here = text === tail ? runs : sharedRuns(traceText, text); // a prompt can quote lines of a tail
  const marks = here.map(({ from, to, at }) => keptMark(view, parent, at, at + to - from, slot, `kept by ${trace.id}`));
  const tokens = view.run.trace(parent)?.tail?.tail_tokens;
  const caption = [
    `Attempt ${slot + 1}: the tail of `,
    traceLink(parent),
    tokens === undefined ? "" : `, ${amount(tokens, "token")}`,
    trace.chars ? `; ${trace.id} kept ${percent(kept)} of it` : "",
  ];
  const colour = view.colourOf(view.run.trace(parent)?.key);
  return h("figure", { class: `tail class-${colour} slot-${slot % 4}` }, h("figcaption", {}, caption), show(marks, `Tail of ${parent}`));
}

function traceText(view, trace, text, shared, found) {
  if (!trace.chars) {
    const lines = view.live(trace)?.lines ?? [];
    const newest = lines.length ? textView(lines.join("\n")) : null;
    return [h("section", { id: "reasoning" }, h("h2", {}, "Reasoning"), missing(whyNoText(view, trace)), newest)];
  }
  const marks = shared.flatMap(({ parent, runs }, slot) =>
    runs.map(({ from, to }) => keptMark(view, parent, from, to, slot, `in the tail of ${parent}`)),
  );
  const tail = trace.tail?.text === trace.text ? trace.tail : null;
  if (tail) marks.push({ from: tail.from, to: tail.to, kind: "carried", title: "carried forward as its tail" });
  if (found) marks.push({ from: found.at, to: found.at + found.length, kind: "found", title: "found" });
  const part = (from, to, label) => {
    const here = marks.filter((mark) => mark.from < to && mark.to > from);
    const moved = here.map((mark) => ({ ...mark, from: mark.from - from, to: mark.to - from }));
    const shown = textView(text.slice(from, to), moved, label);
    if (found && found.at >= from && found.at < to) shown.found = found.at - from;
    return shown;
  };
  const { answerAt, reasoningEnd, maxTokens, state, closedAt } = trace;
  const isSplit = answerAt !== null && answerAt >= reasoningEnd;
  const end = isSplit ? reasoningEnd : text.length;
  const limit = maxTokens === null ? "max_tokens" : amount(maxTokens, "token");
  const reasoning = h(
    "section",
    { class: "trace-text", id: "reasoning" },
    h("h2", {}, isSplit || answerAt === null ? "Reasoning" : "Reasoning and answer"),
    notes(view, trace, shared),
    part(0, end, "Reasoning"),
    closedAt === null
      ? null
      : h("p", { class: "closed" }, `The run closed the thinking here, after ${amount(closedAt, "token")}, for an answer.`),
    state === "truncated" ? h("p", { class: "truncated" }, `✂ Cut off here at ${limit}.`) : null,
  );
  if (!isSplit) return [reasoning];
  const answer = [h("h2", {}, "Answer"), part(answerAt, text.length, "Answer")];
  return [
    reasoning,
    h("div", { class: "trace-text divider" }, part(end, answerAt, null)),
    h("section", { class: "trace-text", id: "answer" }, answer),
  ];
}

// The key to the marks in the text.
function notes(view, trace, shared) {
  const { tail, answerAt, reasoningEnd } = trace;
  const kept = shared.filter(({ runs }) => runs.length);
  const items = kept.map(({ parent }) => {
    const mark = h("mark", { class: keptMark(view, parent, 0, 0, trace.parents.indexOf(parent)).kind }, "this");
    return [mark, " is also in the tail of ", traceLink(parent)];
  });
  if (tail?.text === trace.id) {
    const isInAnswer = answerAt !== null && answerAt >= reasoningEnd && tail.from >= answerAt;
    const readers = view.run.children(trace.id).map((child) => traceLink(child.id));
    items.push([
      h("mark", { class: "carried" }, "this"),
      ` is the tail${isInAnswer ? ", in the answer below" : ""}: ${amount(tail.tail_tokens, "token")}, carried forward`,
      readers.length ? [", read by ", listed(readers)] : "",
    ]);
  } else if (tail) {
    const where = tail.text.endsWith("/summary") ? "it is in its summary, below." : "it is recorded separately, below.";
    items.push(["The tail is not a part of this text: ", where]);
  }
  return h("ul", { class: "key minor" }, items.map((item) => h("li", {}, item)));
}

function whyNoText(view, trace) {
  const state = view.state(trace);
  if (state === "failed") return "It failed. The overview lists its errors.";
  if (state === "cancelled") return "It was cancelled: the vote was decided without it.";
  if (state === "waiting") return "It has not started.";
  if (state === "done" || state === "truncated") return "Its text is empty.";
  if (view.live(trace)) return "It is running. These are its last lines; all of its text follows once it is finished.";
  const checkpoint = trace.tokens ? `${amount(trace.tokens, "token")} at its last checkpoint; ` : "";
  return `It is ${view.stateWord(trace)}: ${checkpoint}the trail has the text of a trace only once it is finished.`;
}
