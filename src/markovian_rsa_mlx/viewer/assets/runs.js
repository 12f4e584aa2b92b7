// The list of a server's runs.

import { applyTheme, refusal, skipLink, themeSwitch } from "./chrome.js";
import { count, h, said } from "./dom.js";
import { ask } from "./stream.js";
import { unpack } from "./texts.js";

const AGAIN_MS = 5000;

async function showRuns(about) {
  const main = document.getElementById("main");
  try {
    const answer = await (await ask(`${about.base}/v1/runs`)).json();
    const runs = Array.isArray(answer) ? answer : (answer.data ?? answer.runs ?? []);
    main.replaceChildren(h("h1", {}, "Runs"), runs.length ? table(about, runs) : h("p", {}, "There are no runs yet."));
  } catch (error) {
    if (error.status && error.status < 500) return main.replaceChildren(refusal(error, () => showRuns(about)));
    main.querySelector(".lost") ?? main.prepend(h("p", { class: "lost missing" }, "The server does not answer; trying again."));
  }
  setTimeout(() => showRuns(about), AGAIN_MS);
}

function table(about, runs) {
  const head = ["Run", "When (UTC)", "State", "Tokens", "Answer", "Question"];
  return h("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": "Runs" },
    h("table", {}, h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, runs.map((run) => row(about, run)))));
}

function row(about, run) {
  const id = String(run.run_id || run.id || "");
  const name = id ? h("a", { href: `${about.base}/runs/${encodeURIComponent(id)}` }, id.slice(0, 8)) : "damaged";
  return h("tr", {},
    h("th", { scope: "row" }, name),
    h("td", { class: "nowrap" }, String(run.created_at ?? "").slice(0, 16).replace("T", " ")),
    h("td", {}, said(String(run.state ?? run.status ?? ""), 20)),
    h("td", { class: "number" }, count(Number(run.generated_tokens ?? 0))),
    h("td", {}, said(String(run.answer ?? ""), 40)),
    h("td", {}, said(String(run.prompt ?? run.problem ?? ""), 100)));
}

async function openRuns() {
  applyTheme();
  skipLink();
  const { about } = await (await unpack(document.getElementById("run"))).json();
  document.getElementById("header").replaceChildren(h("span", { class: "home" }, "markovian-rsa-mlx"), themeSwitch());
  await showRuns(about);
  document.documentElement.dataset.ready = "yes";
}

openRuns();
