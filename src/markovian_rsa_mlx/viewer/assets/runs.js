// The list of a server's runs.

import { announce, applyTheme, refusal, skipLink, themeSwitch } from "./chrome.js";
import { amount, count, h, said } from "./dom.js";
import { fill, refocus, renew } from "./renew.js";
import { ask } from "./stream.js";
import { unpack } from "./texts.js";
import { Visits } from "./visits.js";

const AGAIN_MS = 5000;
const PAGE = 20;
const MOST = 100; // of one request

class Runs {
  constructor(about) {
    const main = document.getElementById("main");
    const { place } = new Visits(main, () => ({ wanted: this.wanted }));
    Object.assign(this, { about, main, place, wanted: place?.wanted ?? PAGE, turn: 0 });
  }

  async show() {
    clearTimeout(this.timer);
    const began = performance.now();
    const turn = ++this.turn;
    try {
      const { runs, more } = await this.fetch(this.wanted);
      if (turn !== this.turn) return; // more were asked for meanwhile
      const nodes = [h("h1", {}, "Runs"), runs.length ? table(this.about, runs) : h("p", {}, "There are no runs yet.")];
      renew(this.main, more ? [...nodes, this.older()] : nodes);
      this.arrive(runs.length);
    } catch (error) {
      if (turn !== this.turn) return;
      if (error.status && error.status < 500 && error.status !== 429) return this.refused(error);
      if (!this.main.querySelector(".lost"))
        this.main.prepend(h("p", { class: "lost missing" }, "The server does not answer; trying again."));
    }
    this.timer = setTimeout(() => this.show(), Math.max(AGAIN_MS, 20 * (performance.now() - began)));
  }

  refused(error) {
    fill(this.main, [refusal(error, () => this.show())]);
    this.main.querySelector("input")?.focus();
  }

  arrive(number) {
    if (this.place) {
      window.scrollTo(0, this.place.y);
      refocus(this.main, this.place.focus);
    }
    if (this.asked) announce(`${amount(number, "run")} are shown`);
    this.place = this.asked = null;
  }

  older() {
    const more = () => {
      this.wanted += PAGE;
      this.asked = true;
      this.show();
    };
    return h("p", {}, h("button", { type: "button", onclick: more }, "Show older runs"));
  }

  async fetch(wanted) {
    const runs = [];
    for (let after = ""; ; ) {
      const limit = Math.min(MOST, wanted - runs.length);
      const { data, has_more } = await (await ask(`${this.about.base}/v1/runs?limit=${limit}${after}`)).json();
      const last = data.findLastIndex((run) => run.id && run.trail); // by the others no page can be asked for
      const isWhole = !has_more || last < 0;
      runs.push(...(isWhole ? data : data.slice(0, last + 1)));
      if (isWhole || runs.length >= wanted) return { runs, more: has_more && last >= 0 };
      after = `&after=${encodeURIComponent(data[last].id)}`;
    }
  }
}

function table(about, runs) {
  const head = ["Run", "When (UTC)", "State", "Tokens", "Answer", "Question"];
  return h(
    "div",
    { class: "scroller", tabindex: 0, role: "region", "aria-label": "Runs" },
    h(
      "table",
      { class: "runs" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          head.map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      h(
        "tbody",
        {},
        runs.map((run) => row(about, run)),
      ),
    ),
  );
}

function row(about, run) {
  const short = run.id.slice(0, 8);
  const name = !run.id
    ? "damaged"
    : run.trail
      ? h("a", { href: `${about.base}/runs/${encodeURIComponent(run.id)}` }, short)
      : h("span", { title: "An ordinary completion keeps no trail" }, short);
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, name),
    h("td", { class: "nowrap" }, run.created_at.slice(0, 16).replace("T", " ")),
    h("td", { class: "nowrap" }, run.state),
    h("td", { class: "number" }, count(run.generated_tokens)),
    h("td", {}, said(run.answer, 40)),
    h("td", {}, said(run.prompt || run.problem, 100)),
  );
}

async function openRuns() {
  applyTheme();
  skipLink();
  const { about } = await (await unpack(document.getElementById("run"))).json();
  document.getElementById("header").replaceChildren(h("span", { class: "home" }, "markovian-rsa-mlx"), themeSwitch());
  await new Runs(about).show();
  document.documentElement.dataset.ready = "yes";
}

openRuns();
