// Each answer's share by round, as bars; the words beside them say the same.

import { amount, count, h, percent, said, visible, cut, flat } from "./dom.js";

export function sharesChart(view) {
  const rows = view.run.roundNumbers().map((round) => {
    const tally = view.run.tally(round);
    const total = tally.reduce((sum, { ids }) => sum + ids.length, 0);
    const shown = tally.slice(0, 8);
    const spoken = shown
      .map(({ key, answer, ids }) => `${key ? visible(cut(flat(answer), 40)) : "no answer"}: ${ids.length}`)
      .join(", ");
    const parts = shown.map((one) => bar(view, one, total));
    return h(
      "div",
      { class: "share" },
      h("span", { class: "round" }, `Round ${round}`),
      h(
        "div",
        {
          class: "bars",
          role: "img",
          "aria-label": `Round ${round}, ${amount(total, "finished trace")}: ${spoken || "none yet"}`,
        },
        parts,
      ),
      h("span", { class: "minor" }, total ? `${count(tally.filter(({ key }) => key).length)} different` : "none yet"),
    );
  });
  return h("div", { class: "shares" }, rows, legend(view));
}

function bar(view, { key, answer, ids }, total) {
  const share = ids.length / total;
  const words = key ? visible(cut(flat(answer), 60)) : "no answer";
  return h(
    "span",
    {
      class: `bar class-${view.colourOf(key)}`,
      style: { "flex-grow": String(ids.length) },
      title: `${words}: ${ids.length} (${percent(share)})`,
    },
    share > 0.07 ? String(ids.length) : "",
  );
}

function legend(view) {
  const entries = [...view.colours.entries()].map(([key, colour]) => {
    const holder = view.run.all().find((trace) => view.run.key(trace) === key);
    return h(
      "li",
      {},
      h("span", { class: `swatch class-${colour}` }),
      said(holder?.answer ?? key, 40),
      key === view.path?.key ? " (the run's answer)" : "",
    );
  });
  return h(
    "ul",
    { class: "legend" },
    entries,
    h("li", {}, h("span", { class: "swatch class-none" }), "no answer"),
    view.hasOtherColours() ? h("li", {}, h("span", { class: "swatch class-other" }), "other answers") : null,
  );
}
