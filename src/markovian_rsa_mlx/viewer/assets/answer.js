// The answer of a run: who gave it, by which rule, and whose tails carried it on.

import { amount, h, listed, said, separated } from "./dom.js";
import { chain } from "./story.js";
import { traceLink, verdictSign } from "./table.js";
import { textView } from "./text.js";

const HOW = {
  single: "it is the first final candidate that has an answer",
  majority: "it speaks for the largest class of equal answers among the final candidates",
  final_aggregation: "it is one more trace, which read the final candidates",
  fallback: "the aggregating trace had no answer, so it is the first final candidate that has one",
};

export function answer(view) {
  const { run } = view;
  const winner = run.trace(run.selection?.chosen_trace_id ?? run.final?.final_trace_id);
  if (!run.selection && !run.final) return soFar(view);
  const chosen = run.selection?.answer ?? winner?.answer ?? "";
  const rule = ruleOf(run, winner);
  return [
    h(
      "p",
      { class: "chosen" },
      chosen ? textView(chosen) : "no answer",
      winner ? [" ", verdictSign(view.verdict(winner))] : null,
    ),
    h("p", {}, ...because(winner ? traceLink(winner.id) : said(run.final.final_trace_id), rule, chosen)),
    tally(view),
    how(view),
    run.final ? h("details", {}, h("summary", {}, "The answer’s whole text"), textView(run.final.final_text)) : null,
  ];
}

// The aggregating trace is no final candidate; where one of these was chosen, it had no answer.
function ruleOf(run, winner) {
  const rule = (run.selection ?? run.final).answer_selection;
  const finals = run.selection?.candidate_trace_ids ?? run.final.all_final_trace_ids;
  return rule === "final_aggregation" && finals.includes(winner?.id) ? "fallback" : rule;
}

function because(who, rule, chosen) {
  if (!chosen) return ["No final candidate has an answer; the text is that of ", who, "."];
  return ["It is ", who, "’s: ", HOW[rule] ?? said(rule), "."];
}

function soFar(view) {
  const best = view.run
    .roundNumbers()
    .reverse()
    .map((round) => ({ round, top: view.run.tally(round)[0] }))
    .find(({ top }) => top?.key);
  if (!best) return h("p", {}, view.running ? "Not yet." : "None: no trace of this file has an answer.");
  return h(
    "p",
    {},
    view.running ? "Not yet. " : "None was chosen. ",
    `The answer of most traces of round ${best.round} so far: `,
    said(best.top.answer),
    ` (${best.top.ids.length}).`,
  );
}

function tally(view) {
  const { selection } = view.run;
  if (!selection) return null;
  const answers = new Map(selection.candidate_trace_ids.map((id, i) => [id, selection.answers[i] ?? ""]));
  const classes = selection.classes.map((members, i) => ({ members, votes: selection.tally[i] ?? members.length }));
  classes.sort((a, b) => b.votes - a.votes);
  const silent = selection.candidate_trace_ids.length - classes.reduce((sum, { votes }) => sum + votes, 0);
  const zero = selection.round_zero ?? {};
  return h(
    "div",
    { class: "tally" },
    selection.candidate_trace_ids.length > 1
      ? h(
          "table",
          {},
          h(
            "caption",
            {},
            `The final candidates: ${amount(selection.candidate_trace_ids.length, "trace")}${selection.tie ? ", a tie" : ""}`,
          ),
          h(
            "tbody",
            {},
            classes.map(({ members, votes }) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, said(answers.get(members[0]) ?? "?", 60)),
                h("td", { class: "number" }, `${votes} ×`),
                h("td", {}, separated(members.map((id) => traceLink(id)))),
              ),
            ),
            silent > 0
              ? h(
                  "tr",
                  {},
                  h("th", { scope: "row" }, "no answer"),
                  h("td", { class: "number" }, `${silent} ×`),
                  h("td"),
                )
              : null,
          ),
        )
      : null,
    zero.traces
      ? h(
          "p",
          { class: "minor" },
          "A free vote over round 0 alone would have said ",
          zero.answer ? said(String(zero.answer)) : "nothing",
          zero.answer ? ` (${zero.votes} of ${amount(zero.traces, "trace")}).` : ".",
        )
      : null,
  );
}

// Whose tail carried the answer on, and where it was lost.
function how(view) {
  const { run, path } = view;
  if (!path) return null;
  if (run.roundNumbers().length < 2) return null;
  const steps = chain(run, path);
  const first = run.trace(steps[0]);
  const others = path.origins.filter((trace) => trace.id !== first.id);
  const alike = run.tally(first.round).find(({ key }) => key === path.key)?.ids.length ?? 1;
  const finished = run.tally(first.round).reduce((sum, { ids }) => sum + ids.length, 0);
  return h(
    "div",
    { class: "how" },
    h("h3", {}, "How it came about"),
    h(
      "ol",
      { class: "chain" },
      steps.map((id, i) =>
        h(
          "li",
          {},
          traceLink(id),
          h(
            "span",
            { class: "minor" },
            i === 0
              ? first.round === 0
                ? " found it"
                : " found it, though none of the tails that it read had it"
              : " read that tail and answered the same",
            i === steps.length - 1 && i > 0 ? ": the run’s answer" : "",
          ),
        ),
      ),
    ),
    h(
      "p",
      {},
      `In round ${first.round}, ${alike} of ${amount(finished, "finished trace")} answered so.`,
      others.length
        ? [" It was also found anew by ", listed(others.slice(0, 8).map((trace) => traceLink(trace.id))), "."]
        : "",
    ),
    path.lost.length
      ? h(
          "p",
          {},
          "Not taken over by ",
          listed(
            path.lost
              .slice(0, 8)
              .map((trace) => [
                traceLink(trace.id),
                trace.answer ? " (" : " (no answer",
                trace.answer ? said(trace.answer, 24) : "",
                view.verdict(trace) ? ", right too)" : ")",
              ]),
          ),
          path.lost.length > 8 ? ` and ${path.lost.length - 8} more` : "",
          ": they read it in a tail and answered otherwise.",
        )
      : null,
  );
}
