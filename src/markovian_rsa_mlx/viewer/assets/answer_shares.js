// The share of each answer per round, as bars. Labels hold the same in words.

import { amount, count, h, modelText, oneLine, percent } from "./dom.js";

const MAX_BARS = 8;

export function answerShares(view) {
  const rows = view.run.roundNumbers().map((round) => {
    const tally = view.run.tally(round);
    const total = tally.reduce((sum, { ids }) => sum + ids.length, 0);
    const shown = tally.slice(0, MAX_BARS);
    const words = shown.map((one) => `${nameOf(one, 40)}: ${one.ids.length}`).join(", ") || "none yet";
    const label = `Round ${round}, ${amount(total, "finished trace")}: ${words}`;
    const different = count(tally.filter(({ key }) => key).length);
    return h(
      "div",
      { class: "share" },
      h("span", { class: "round" }, `Round ${round}`),
      h("div", { class: "bars", role: "img", "aria-label": label }, shown.map((one) => bar(view, one, total))),
      h("span", { class: "minor" }, total ? `${different} different` : "none yet"),
    );
  });
  return h("div", { class: "shares" }, rows, legend(view));
}

function nameOf({ key, answer }, width) {
  return key ? oneLine(answer, width) : answer ? "not compared" : "no answer";
}

function bar(view, one, total) {
  const votes = one.ids.length;
  const title = `${nameOf(one, 60)}: ${votes} (${percent(votes / total)})`;
  const attributes = { class: `bar class-${view.colourOf(one.key)}`, style: { "flex-grow": String(votes) }, title };
  return h("span", attributes, votes / total > 0.07 ? String(votes) : "");
}

function legend(view) {
  const entry = (colour, ...words) => h("li", {}, h("span", { class: `swatch class-${colour}` }), words);
  const entries = view.ranked.filter((key) => view.colours.has(key)).map((key) => {
    const holder = view.run.all().find((trace) => trace.key === key);
    return entry(view.colourOf(key), modelText(holder.answer, 40), key === view.run.winner?.key ? " (the answer of the run)" : "");
  });
  const keyless = view.run.all().some(({ key, answer }) => !key && answer) ? "not compared" : "no answer";
  const others = view.ranked.length > view.colours.size ? entry("other", "other answers") : null;
  return h("ul", { class: "legend" }, entries, entry("none", keyless), others);
}
