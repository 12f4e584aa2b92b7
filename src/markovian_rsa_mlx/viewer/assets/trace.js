// The page of one trace: what it read, what it thought, where its tail was cut, what it answered.

import { foundView, summaryOf, tailOf } from "./carried.js";
import { amount, count, duration, h, listed, percent, said } from "./dom.js";
import { downloadButton } from "./downloads.js";
import { partOf } from "./places.js";
import { rebuildPrompt } from "./slim.js";
import { sharedRuns } from "./spans.js";
import { traceLink, verdictSign } from "./table.js";
import { textView } from "./text.js";

export async function tracePage(view, id, found = null) {
  const trace = view.run.trace(id);
  if (!trace) return [h("h1", {}, "No such trace"), h("p", {}, "This run has no trace ", said(id, 30), ".")];
  const text = await view.texts.get(id);
  const shared = await view.shared(trace);
  const place = partOf(location.hash);
  const sections = traceText(view, trace, text, shared, found);
  return [
    heading(view, trace),
    facts(view, trace),
    h("section", { id: "prompt" }, h("h2", {}, "What it read"), await promptOf(view, trace, shared, text, place)),
    ...sections,
    await tailOf(view, trace, place),
    await summaryOf(view, trace, place),
  ];
}

function heading(view, trace) {
  const all = view.run.all();
  const at = all.indexOf(trace);
  const step = (other, words) =>
    other
      ? h("a", { href: `#/trace/${other.id}`, rel: words }, words === "prev" ? `← ${other.id}` : `${other.id} →`)
      : null;
  const choose = h(
    "select",
    {
      "aria-label": "Compare with another trace",
      onchange: (event) => (location.hash = `#/compare/${trace.id}/${event.target.value}`),
    },
    h("option", { value: "", disabled: true, selected: true }, "Compare with …"),
    all.filter((other) => other !== trace && other.chars).map((other) => h("option", { value: other.id }, other.id)),
  );
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
      trace.chars
        ? downloadButton("Download text", `${trace.id}.txt`, () => view.texts.get(trace.id))
        : null,
    ),
  );
}

function facts(view, trace) {
  const children = view.run.children(trace.id);
  const rows = [
    ["State", [view.stateWord(trace), view.isWinner(trace) ? ": its answer is the run’s" : ""]],
    ["Answer", trace.answer ? [said(trace.answer, 200), " ", verdictSign(view.verdict(trace))] : "none"],
    ["Tokens", trace.budget ? `${count(trace.tokens)} of ${count(trace.budget)}` : count(trace.tokens)],
    ["Prompt", trace.promptTokens === null ? null : amount(trace.promptTokens, "token")],
    ["Took", trace.elapsed === null ? null : duration(trace.elapsed)],
    ["Seed", trace.seed],
    ["Read", trace.parents.length ? listed(trace.parents.map((id) => traceLink(id))) : "the question alone"],
    ["Was read by", children.length ? listed(children.map((child) => traceLink(child.id))) : "nobody"],
    [
      "Attempts",
      trace.retries.length
        ? [`${trace.retries.length + 1}; `, listed(trace.retries.map((retry) => said(retry.message, 200)))]
        : null,
    ],
  ];
  return h(
    "dl",
    { class: "facts" },
    rows
      .filter(([, value]) => value !== null)
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

async function promptOf(view, trace, shared, spoken, place) {
  const { run, texts } = view;
  if (trace.round === 0 && !trace.parents.length) {
    return run.setup
      ? [foundView(run.setup.prompt_text, [], "Prompt", place, "prompt"), toDownload(trace, run.setup.prompt_text)]
      : h("p", { class: "missing" }, "The trail does not hold the prompt of round 0.");
  }
  if (!trace.prompt)
    return h("p", { class: "missing" }, "Its prompt is not written yet: it waits for the traces that it reads.");
  const parts = trace.prompt.rebuilt
    ? rebuildPrompt(
        run.setup,
        shared.map(({ tail }) => tail),
      )
    : recorded(await texts.get(`${trace.id}/prompt`), shared);
  let end = 0;
  return [
    ...parts.map((part) => {
      const from = end;
      end += part.text.length;
      const shown = (marks, label) => foundView(part.text, marks, label, place, "prompt", from);
      return part.slot === null ? shown([], null) : tailBox(view, trace, shared[part.slot], part, spoken, shown);
    }),
    toDownload(trace, parts.map((part) => part.text).join("")),
  ];
}

function toDownload(trace, prompt) {
  return downloadButton("Download prompt", `${trace.id}-prompt.txt`, prompt);
}

// A prompt that cannot be rebuilt: its tails are sought in it, in their order.
function recorded(text, shared) {
  const parts = [];
  let done = 0;
  shared.forEach(({ tail }, slot) => {
    const at = tail ? text.indexOf(tail, done) : -1;
    if (at < 0) return;
    parts.push({ text: text.slice(done, at), slot: null }, { text: tail, slot });
    done = at + tail.length;
  });
  return [...parts, { text: text.slice(done), slot: null }];
}

function keptMark(from, to, slot, title) {
  return { from, to, kind: `kept kept-${slot}`, slot, title };
}

function tailBox(view, trace, { parent, runs, tail }, { slot, text }, spoken, shown) {
  const kept = view.kept.get(`${parent}>${trace.id}`) ?? 0;
  const here = text === tail ? runs : sharedRuns(spoken, text); // a prompt may quote lines of a tail
  const marks = here.map(({ from, to, at }) => keptMark(at, at + to - from, slot % 4, `kept by ${trace.id}`));
  const tokens = view.run.trace(parent)?.tail?.tail_tokens;
  return h(
    "figure",
    { class: `tail slot-${slot % 4}` },
    h(
      "figcaption",
      {},
      `Attempt ${slot + 1}: the tail of `,
      traceLink(parent),
      tokens === undefined ? "" : `, ${amount(tokens, "token")}`,
      trace.chars ? `; ${trace.id} kept ${percent(kept)} of it` : "",
    ),
    shown(marks, `Tail of ${parent}`),
  );
}

function traceText(view, trace, text, shared, found) {
  if (!trace.chars)
    return [h("section", {}, h("h2", {}, "Reasoning"), h("p", { class: "missing" }, nothing(view, trace)))];
  const marks = shared.flatMap(({ parent, runs }, slot) =>
    runs.map(({ from, to }) => keptMark(from, to, slot % 4, `stands in the tail of ${parent}`)),
  );
  const tail = trace.tail?.text === trace.id ? trace.tail : null;
  if (tail) marks.push({ from: tail.from, to: tail.to, kind: "carried", title: "carried on as its tail" });
  if (found) marks.push({ from: found.at, to: found.at + found.length, kind: "found", title: "found" });
  const part = (from, to, label) => {
    const view_ = textView(
      text.slice(from, to),
      marks
        .filter((mark) => mark.from < to && mark.to > from)
        .map((mark) => ({ ...mark, from: mark.from - from, to: mark.to - from })),
      label,
    );
    if (found && found.at >= from && found.at < to) view_.found = found.at - from;
    return view_;
  };
  const split = trace.answerAt !== null && trace.answerAt >= trace.reasoningEnd;
  const end = split ? trace.reasoningEnd : text.length;
  const sections = [
    h(
      "section",
      { class: "trace-text", id: "reasoning" },
      h("h2", {}, split || trace.answerAt === null ? "Reasoning" : "Reasoning and answer"),
      notes(view, trace, shared),
      part(0, end, "Reasoning"),
      trace.state === "cut off"
        ? h(
            "p",
            { class: "cut" },
            `✂ Cut off here by its budget of ${trace.budget === null ? "tokens" : amount(trace.budget, "token")}.`,
          )
        : null,
    ),
  ];
  if (split) {
    sections.push(
      h("div", { class: "trace-text divider" }, part(end, trace.answerAt, null)),
      h(
        "section",
        { class: "trace-text", id: "answer" },
        h("h2", {}, "Answer"),
        part(trace.answerAt, text.length, "Answer"),
      ),
    );
  }
  return sections;
}

function inAnswer({ tail, answerAt, reasoningEnd }) {
  return answerAt !== null && answerAt >= reasoningEnd && tail.from >= answerAt;
}

function notes(view, trace, shared) {
  const children = view.run.children(trace.id).map((child) => traceLink(child.id));
  const own = trace.tail?.text === trace.id;
  return h(
    "ul",
    { class: "key minor" },
    shared
      .filter(({ runs }) => runs.length)
      .map(({ parent }) =>
        h(
          "li",
          {},
          h("mark", { class: `kept kept-${trace.parents.indexOf(parent) % 4}` }, "this"),
          " stands in the tail of ",
          traceLink(parent),
        ),
      ),
    own
      ? h(
          "li",
          {},
          h("mark", { class: "carried" }, "this"),
          ` is ${inAnswer(trace) ? "of the answer, below" : "the tail"}, ${amount(trace.tail.tail_tokens, "token")}: `,
          "what was carried on",
          children.length ? [", read by ", listed(children)] : "",
        )
      : null,
    trace.tail && !own
      ? h(
          "li",
          {},
          "What was carried on is not a piece of this text: ",
          trace.tail.text.endsWith("/summary") ? "it is its summary, below." : "it was recorded apart, below.",
        )
      : null,
  );
}

function nothing(view, trace) {
  const state = view.state(trace);
  if (state === "given up") return "It was given up; the reasons are among the errors of the overview.";
  if (state === "waiting") return "It has not begun.";
  const so = trace.tokens ? `${amount(trace.tokens, "token")} at its last checkpoint; ` : "";
  return state === "done" || state === "cut off"
    ? "It said nothing."
    : `It is ${view.stateWord(trace)}: ${so}the trail holds its text only once it is finished.`;
}
