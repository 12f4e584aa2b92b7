// The list of a server's runs.

import { applyTheme, refusal, skipLink, themeSwitch } from "./chrome.js";
import { count, h, said } from "./dom.js";
import { ask } from "./stream.js";
import { unpack } from "./texts.js";

const AGAIN_MS = 5000;

async function showRuns(about) {
  const main = document.getElementById("main");
  try {
    const { data, has_more } = await (await ask(`${about.base}/v1/runs`)).json();
    main.replaceChildren(
      h("h1", {}, "Runs"),
      data.length ? table(about, data) : h("p", {}, "There are no runs yet."),
      has_more ? h("p", { class: "minor" }, "There are older ones; mrsa runs list shows all.") : "",
    );
  } catch (error) {
    if (error.status && error.status < 500) return main.replaceChildren(refusal(error, () => showRuns(about)));
    main.querySelector(".lost") ??
      main.prepend(h("p", { class: "lost missing" }, "The server does not answer; trying again."));
  }
  setTimeout(() => showRuns(about), AGAIN_MS);
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
  const name = run.id
    ? h("a", { href: `${about.base}/runs/${encodeURIComponent(run.id)}` }, run.id.slice(0, 8))
    : "damaged";
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
  await showRuns(about);
  document.documentElement.dataset.ready = "yes";
}

openRuns();
