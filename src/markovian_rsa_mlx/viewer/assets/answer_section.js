// The answer of a run: the trace that gave it, the rule that chose it, and the path it took through the tails.

import { amount, count, h, listed, modelText, separated } from "./dom.js";
import { traceLink, verdictSign } from "./table.js";
import { textView } from "./text.js";

const RULES = {
  single: "the first final candidate that has an answer",
  majority: "a member of the largest class of equal answers among the final candidates",
  final_aggregation: "the trace that aggregated the final candidates",
  tournament: "the winner of the pairs of final candidates that the model judged",
  unjudged: "the first final candidate that finished, since there was nothing to judge",
  fallback: "the first final candidate that has an answer, since the aggregating trace has none",
  open: "the first final candidate that finished; open answers are not compared",
  openUnfinished: "the first one with a text, as no final candidate finished; open answers are not compared",
  openFallback: "a final candidate, since the aggregating trace did not finish with a text",
};
const MAX_NAMED = 8;
const MAX_PAIRS = 200;

export function answerSection(view) {
  const { run } = view;
  const { winner, selection, final } = run;
  if (!selection && !final) return provisionalAnswer(view);
  const answer = selection?.answer ?? winner?.answer ?? "";
  const verdict = winner ? [" ", verdictSign(view.verdict(winner))] : null;
  const giver = winner ? traceLink(winner.id) : modelText(final?.final_trace_id ?? selection.chosen_trace_id);
  const reason = answer
    ? ["Given by ", giver, ": ", ruleOf(run), "."]
    : ["No answer could be found in the final candidates. This is the text of ", giver, "."];
  const text = answer || (final?.final_text ?? "").trim();
  const isCut = winner?.state === "truncated";
  return [
    h("p", { class: answer && !isCut ? "chosen" : "chosen whole" }, text ? textView(text) : "no answer", winner?.weak ? " (weak)" : null, verdict),
    isCut ? h("p", { class: "truncated" }, `✂ ${winner.id} was cut off at ${amount(winner.tokens, "token")}.`) : null,
    h("p", {}, reason),
    selection && !run.isOpen ? tally(run) : null,
    tournament(run),
    provenance(view),
    answer && final && final.final_text !== answer
      ? h("details", {}, h("summary", {}, "The whole text of the answer"), textView(final.final_text))
      : null,
  ];
}

// The aggregating trace is not a final candidate. If one of these was chosen, the aggregating trace had no answer.
function ruleOf({ selection, final, winner, isOpen, judgements }) {
  if (isOpen && selection.answer_selection === "single")
    return RULES[winner?.state === "truncated" ? "openUnfinished" : "open"];
  const rule = (selection ?? final).answer_selection;
  const finals = selection?.candidate_trace_ids ?? final.all_final_trace_ids;
  const isFallback = rule === "final_aggregation" && finals.includes(winner?.id);
  if (isFallback) return RULES[isOpen ? "openFallback" : "fallback"];
  if (rule === "tournament" && !judgements.length) return RULES.unjudged;
  return RULES[rule] ?? modelText(rule);
}

// The pairs of the tournament, with the trace that each judgement named. A pair whose judgements differ is a draw.
function tournament({ judgements }) {
  if (!judgements.length) return null;
  const pairs = new Map();
  for (const { number, round, order, full, pair, verdict } of judgements.filter((line) => line.pair.length === 2)) {
    const key = `${number} ${full}`;
    const found = pairs.get(key) ?? { number, round, full, pair: order ? [pair[1], pair[0]] : pair, named: [] };
    found.named[order ? 1 : 0] = verdict === "A" ? pair[0] : verdict === "B" ? pair[1] : "";
    pairs.set(key, found);
  }
  const sorted = [...pairs.values()].sort((a, b) => a.number - b.number || a.full - b.full);
  const name = (id) => (id ? traceLink(id) : id === "" ? "none" : "missing");
  const outcome = ([one, other]) => (one && one === other ? ["wins: ", traceLink(one)] : "draw");
  const row = ({ round, full, pair, named }) =>
    h(
      "tr",
      {},
      h("td", { class: "number" }, `${round}`),
      h("td", {}, separated(pair.map((id) => traceLink(id))), full ? " in full" : null),
      h("td", {}, name(named[0]), ", ", name(named[1])),
      h("td", {}, outcome(named)),
    );
  const head = ["round", "pair", "named", "result"].map((text) => h("th", { scope: "col" }, text));
  const table = h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, sorted.slice(0, MAX_PAIRS).map(row)));
  const rest = sorted.length - MAX_PAIRS;
  const summary = h("summary", {}, `The tournament: ${amount(judgements.length, "judgement")} by the model, in both orders of a pair`);
  return h("details", {}, summary, table, rest > 0 ? h("p", { class: "minor" }, `and ${count(rest)} more`) : null);
}

function provisionalAnswer({ run, running }) {
  const rounds = run.roundNumbers().reverse();
  const best = rounds.map((round) => ({ round, top: run.tally(round)[0] })).find(({ top }) => top?.key);
  const hasTexts = run.all().some(({ answer }) => answer);
  const none = hasTexts ? "None was chosen. The traces have open answers." : "None: no trace in this file has an answer.";
  if (!best) return h("p", {}, running ? "Not yet." : none);
  return h(
    "p",
    {},
    running ? "Not yet. " : "None was chosen. ",
    `The most frequent answer of round ${best.round} so far: `,
    modelText(best.top.answer),
    ` (${best.top.ids.length}).`,
  );
}

function tally({ selection }) {
  const candidates = selection.candidate_trace_ids;
  const answers = new Map(candidates.map((id, i) => [id, selection.answers[i] ?? ""]));
  const classes = selection.classes.map((members, i) => ({ members, votes: selection.tally[i] ?? members.length }));
  classes.sort((a, b) => b.votes - a.votes);
  const voters = new Set(selection.classes.flat());
  const weaker = candidates.filter((id) => answers.get(id) && !voters.has(id)); // a stronger level votes
  const without = candidates.length - classes.reduce((sum, { votes }) => sum + votes, 0) - weaker.length;
  const row = (name, votes, members) =>
    h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "number" }, `${count(votes)} ×`), h("td", {}, members));
  const caption = `The final candidates: ${amount(candidates.length, "trace")}${selection.tie ? ", a tie" : ""}`;
  const rows = classes.map(({ members, votes }) =>
    row(modelText(answers.get(members[0]) ?? "?", 60), votes, separated(members.map((id) => traceLink(id)))),
  );
  if (weaker.length) rows.push(row("no vote (weaker answers)", weaker.length, separated(weaker.map((id) => traceLink(id)))));
  if (without > 0) rows.push(row("no answer", without, null));
  return h(
    "div",
    { class: "tally" },
    candidates.length > 1 ? h("table", {}, h("caption", {}, caption), h("tbody", {}, rows)) : null,
    baselineVote(selection.round_zero ?? {}),
  );
}

function baselineVote({ traces, answer, votes }) {
  if (!traces) return null;
  const result = answer ? [modelText(String(answer)), ` (${count(votes)} of ${amount(traces, "trace")}).`] : "no answer.";
  return h("p", { class: "minor" }, "Result of a baseline vote over round 0: ", result);
}

// The path of the answer through the tails, and where it was dropped.
function provenance(view) {
  const { run } = view;
  const { path } = run;
  if (!path || run.roundNumbers().length < 2) return null;
  const first = run.trace(path.chain[0]);
  const tallies = run.tally(first.round);
  const equal = tallies.find(({ key }) => key === first.key)?.ids.length ?? 1;
  const finished = tallies.reduce((sum, { ids }) => sum + ids.length, 0);
  const step = (id, i) => {
    const found = first.round === 0 ? " found it" : " found it, although none of the tails that it read had it";
    const end = i > 0 && i === path.chain.length - 1 ? ": the answer of the run" : "";
    const words = i === 0 ? found : " read that tail and gave the same answer";
    return h("li", {}, traceLink(id), h("span", { class: "minor" }, words, end));
  };
  const independent = listed(path.independent.slice(0, MAX_NAMED).map((id) => traceLink(id)));
  return h(
    "div",
    { class: `how class-${view.colourOf(run.winner?.key)}` },
    h("h3", {}, "How the run reached it"),
    h("ol", { class: "chain" }, path.chain.map(step)),
    h(
      "p",
      {},
      `In round ${first.round}, ${count(equal)} of ${amount(finished, "finished trace")} gave this answer.`,
      independent.length ? [" It was also found independently by ", independent, "."] : "",
    ),
    path.dropped.length ? h("p", {}, dropped(view, path.dropped)) : null,
  );
}

function dropped(view, ids) {
  const named = ids.slice(0, MAX_NAMED).map((id) => {
    const trace = view.run.trace(id);
    const answer = trace.answer ? modelText(trace.answer, 24) : "no answer";
    return [traceLink(id), " (", answer, view.verdict(trace) ? ", also right)" : ")"];
  });
  const others = ids.length > MAX_NAMED ? ` and ${count(ids.length - MAX_NAMED)} more` : "";
  return ["Dropped by ", listed(named), others, ", which read it in a tail and answered otherwise."];
}
