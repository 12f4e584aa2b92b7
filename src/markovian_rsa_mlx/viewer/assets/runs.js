// The list of the runs of a server: searched, filtered and sorted by the server, and a form that starts a run.

import { amount, count, h, missing, modelText, scroller, table, visible } from "./dom.js";
import { refocus, renew, replaceAll } from "./dom_diff.js";
import { HistoryPosition } from "./history_position.js";
import { announce, applyTheme, refusal, skipLink, themeSwitch } from "./page_shell.js";
import { request, send } from "./stream.js";
import { unpack } from "./text_store.js";

const REFRESH_MS = 5000;
const PAGE = 20;
const MAX_PER_REQUEST = 100;
const TYPING_MS = 300;
const STATES = [["", "all"], ["running"], ["finished"], ["unfinished"], ["damaged"]];
const ORDERS = [["newest", "newest first"], ["oldest", "oldest first"], ["most_tokens", "most tokens"], ["question"]];

class Runs {
  constructor(about) {
    const main = document.getElementById("main");
    const { place } = new HistoryPosition(main, () => ({ wanted: this.wanted }));
    Object.assign(this, { about, main, place, wanted: place?.wanted ?? PAGE, turn: 0 });
    this.query = new URLSearchParams(location.search); // q, state, sort
    this.form = this.filterForm();
    this.start = about.start && startForm(about, (error) => this.showRefusal(error));
  }

  filterForm() {
    const value = (name) => this.query.get(name) ?? "";
    const search = h("input", { type: "search", name: "q", value: value("q"), maxlength: 200 });
    const state = choice("state", STATES, value("state"));
    const sort = choice("sort", ORDERS, value("sort"));
    const apply = () => {
      this.query = new URLSearchParams([...new FormData(form)].filter(([, one]) => one && one !== "newest"));
      history.replaceState(history.state, "", `${location.pathname}${this.query.size ? `?${this.query}` : ""}`);
      Object.assign(this, { wanted: PAGE, isExtended: true });
      this.show();
    };
    const oninput = () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(apply, TYPING_MS);
    };
    const onsubmit = (event) => {
      event.preventDefault();
      apply();
    };
    const fields = [["Search", search], ["State", state], ["Sort", sort]];
    const labels = fields.map(([name, field]) => h("label", {}, `${name} `, field));
    const form = h("form", { class: "filter", role: "search", "aria-label": "Runs", oninput, onsubmit }, labels);
    return form;
  }

  async show() {
    clearTimeout(this.timer);
    const started = performance.now();
    const turn = ++this.turn;
    try {
      const { runs, more } = await this.fetch(this.wanted);
      if (turn !== this.turn) return; // a later call shows more
      const none = this.query.size ? "No run matches." : "There are no runs yet.";
      const list = runs.length ? runTable(this.about, runs) : h("p", {}, none);
      const parts = [h("h1", {}, "Runs"), this.start, this.form, list, more && this.olderButton()];
      renew(this.main, parts.filter(Boolean));
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
    if (this.isExtended) announce(`${amount(number, "run")} ${number === 1 ? "is" : "are"} shown`);
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
      const { data, has_more } = await (await request(`${this.about.base}/v1/runs?limit=${limit}${after}&${this.query}`)).json();
      const last = data.findLastIndex((run) => run.id && run.trail); // only stored runs can be given as `after`
      const isWhole = !has_more || last < 0;
      runs.push(...(isWhole ? data : data.slice(0, last + 1)));
      if (isWhole || runs.length >= wanted) return { runs, more: has_more && last >= 0 };
      after = `&after=${encodeURIComponent(data[last].id)}`;
    }
  }
}

function choice(name, options, value) {
  const items = options.map(([one, words = one]) => h("option", { value: one, selected: one === value }, words));
  return h("select", { name }, items);
}

// `refused(error)` is called if the server wants a key. Other reasons are shown in the form.
function startForm({ base, start }, refused) {
  const question = h("textarea", { name: "question", rows: 3, required: true });
  const model = choice("model", start.models.map((name) => [name]));
  const profile = choice("profile", [["", "the server's"], ...start.profiles.map((name) => [name])]);
  const reason = h("p", { role: "alert", class: "wrong reason" });
  const button = h("button", {}, "Start");
  const onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    reason.textContent = "";
    const settings = profile.value ? { rsa_profile: profile.value } : { rsa_t: start.rounds };
    const messages = [{ role: "user", content: question.value }];
    try {
      const run = await (await send(`${base}/v1/runs`, { model: model.value, messages, ...settings })).json();
      location.href = `${base}/runs/${encodeURIComponent(run.id)}`;
    } catch (error) {
      if (error.status === 401) refused(error);
      reason.textContent = error.status ? visible(error.message) : "The server does not answer. Try again.";
    }
    button.disabled = false;
  };
  const choices = [["Model", model], ["Profile", profile]].map(([name, field]) => h("label", {}, `${name} `, field));
  const fields = [h("label", { class: "question" }, "Question ", question), h("div", { class: "tools" }, choices, button), reason];
  return h("details", { class: "start" }, h("summary", {}, "Start a run"), h("form", { onsubmit }, fields));
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
    h("td", {}, run.answer || run.state !== "finished" ? modelText(run.answer, 40) : h("span", { class: "minor" }, "none found")),
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
