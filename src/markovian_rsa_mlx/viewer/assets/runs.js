// The list of the runs of a server.

import { amount, count, h, missing, modelText, scroller, table } from "./dom.js";
import { refocus, renew, replaceAll } from "./dom_diff.js";
import { HistoryPosition } from "./history_position.js";
import { announce, applyTheme, refusal, skipLink, themeSwitch } from "./page_shell.js";
import { request } from "./stream.js";
import { unpack } from "./text_store.js";

const REFRESH_MS = 5000;
const PAGE = 20;
const MAX_PER_REQUEST = 100;

class Runs {
  constructor(about) {
    const main = document.getElementById("main");
    const { place } = new HistoryPosition(main, () => ({ wanted: this.wanted }));
    Object.assign(this, { about, main, place, wanted: place?.wanted ?? PAGE, turn: 0 });
  }

  async show() {
    clearTimeout(this.timer);
    const started = performance.now();
    const turn = ++this.turn;
    try {
      const { runs, more } = await this.fetch(this.wanted);
      if (turn !== this.turn) return; // a later call shows more
      const list = runs.length ? runTable(this.about, runs) : h("p", {}, "There are no runs yet.");
      renew(this.main, [h("h1", {}, "Runs"), list, ...(more ? [this.olderButton()] : [])]);
      this.restorePlace(runs.length);
    } catch (error) {
      if (turn !== this.turn) return;
      if (error.status && error.status < 500 && error.status !== 429) return this.showRefusal(error);
      if (!this.main.querySelector(".lost")) {
        const lost = missing("The server does not answer. Trying again.");
        lost.classList.add("lost");
        this.main.prepend(lost);
      }
    }
    this.timer = setTimeout(() => this.show(), Math.max(REFRESH_MS, 20 * (performance.now() - started)));
  }

  showRefusal(error) {
    replaceAll(this.main, [refusal(error, () => this.show())]);
    this.main.querySelector("input")?.focus();
  }

  restorePlace(number) {
    if (this.place) {
      window.scrollTo(0, this.place.y);
      refocus(this.main, this.place.focus);
    }
    if (this.isExtended) announce(`${amount(number, "run")} are shown`);
    this.place = null;
    this.isExtended = false;
  }

  olderButton() {
    const showOlder = () => {
      this.wanted += PAGE;
      this.isExtended = true;
      this.show();
    };
    return h("p", {}, h("button", { type: "button", onclick: showOlder }, "Show older runs"));
  }

  async fetch(wanted) {
    const runs = [];
    for (let after = ""; ; ) {
      const limit = Math.min(MAX_PER_REQUEST, wanted - runs.length);
      const { data, has_more } = await (await request(`${this.about.base}/v1/runs?limit=${limit}${after}`)).json();
      const last = data.findLastIndex((run) => run.id && run.trail); // only stored runs can be given as `after`
      const isWhole = !has_more || last < 0;
      runs.push(...(isWhole ? data : data.slice(0, last + 1)));
      if (isWhole || runs.length >= wanted) return { runs, more: has_more && last >= 0 };
      after = `&after=${encodeURIComponent(data[last].id)}`;
    }
  }
}

function runTable(about, runs) {
  const head = ["Run", "When (UTC)", "State", "Tokens", "Answer", "Question"];
  return scroller("Runs", table("runs", head, runs.map((run) => row(about, run))));
}

function row({ base }, run) {
  const short = run.id.slice(0, 8);
  const link = run.trail
    ? h("a", { href: `${base}/runs/${encodeURIComponent(run.id)}` }, short)
    : h("span", { title: "An ordinary completion has no trail" }, short);
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, run.id ? link : "damaged"),
    h("td", { class: "nowrap" }, run.created_at.slice(0, 16).replace("T", " ")),
    h("td", { class: "nowrap" }, run.state),
    h("td", { class: "number" }, count(run.generated_tokens)),
    h("td", {}, modelText(run.answer, 40)),
    h("td", {}, modelText(run.prompt || run.problem, 100)),
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
