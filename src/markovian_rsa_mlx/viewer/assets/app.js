// The page of one run: data from the page itself or from a server's stream, a route in the address, a view for it.

import { announce, applyTheme, refusal, skipLink, themeSwitch } from "./chrome.js";
import { comparePage } from "./compare.js";
import { amount, cut, flat, h, visible } from "./dom.js";
import { download } from "./downloads.js";
import { canRenderMaths, setMaths } from "./maths.js";
import { overview } from "./overview.js";
import { thicken } from "./picture.js";
import { Run } from "./run.js";
import { searchPage } from "./search.js";
import { Slimmer } from "./slim.js";
import { ask, follow } from "./stream.js";
import { fillShare } from "./table.js";
import { completeAll } from "./text.js";
import { Texts, unpack } from "./texts.js";
import { tracePage } from "./trace.js";
import { View } from "./view.js";

const REFRESH_MS = 400;

class App {
  constructor(view, trail) {
    Object.assign(this, {
      view,
      trail,
      main: document.getElementById("main"),
      connection: null,
      shown: null,
      turn: 0,
      timer: null,
    });
    addEventListener("hashchange", () => this.show(true));
    addEventListener("beforeprint", completeAll);
    addEventListener("keydown", (event) => this.key(event));
    this.header();
  }

  header() {
    const search = h("input", {
      type: "search",
      name: "search",
      "aria-label": "Search in all texts",
      placeholder: "Search all texts ( / )",
    });
    const reference = h("input", {
      type: "text",
      name: "reference",
      size: 10,
      value: this.view.reference,
      onchange: (event) => this.judge(event.target.value),
    });
    const maths = canRenderMaths()
      ? h(
          "label",
          {},
          h("input", { type: "checkbox", name: "maths", onchange: (event) => this.maths(event.target.checked) }),
          " Render maths",
        )
      : null;
    this.state = h("span", { class: "state" });
    document
      .getElementById("header")
      .replaceChildren(
        ...(this.view.about.base === undefined ? [] : [h("a", { href: `${this.view.about.base}/` }, "All runs")]),
        h("a", { href: "#/", class: "home" }, this.name()),
        this.state,
        h(
          "form",
          {
            role: "search",
            onsubmit: (event) => (
              event.preventDefault(),
              (location.hash = `#/search/${encodeURIComponent(search.value)}`)
            ),
          },
          search,
        ),
        h(
          "details",
          { class: "more" },
          h("summary", {}, "Options"),
          h(
            "div",
            { class: "menu" },
            h("label", {}, "Right answer ", reference),
            maths,
            themeSwitch(),
            this.trail
              ? h("button", { type: "button", onclick: () => this.trail() }, "Download trail")
              : h("span", { class: "minor" }, "The trail is too large for this page; it lies where the settings say."),
          ),
        ),
      );
    this.say();
  }

  name() {
    const { start } = this.view.run;
    return start ? `Run ${visible(cut(start.run_id, 9))}` : "Run";
  }

  say() {
    const { run } = this.view;
    document.querySelector("header .home").textContent = this.name(); // a live page learns it late
    const words = run.finished
      ? "finished"
      : this.connection === "lost"
        ? "connection lost, trying again"
        : this.view.running
          ? "running"
          : "unfinished";
    this.state.textContent = words;
    this.state.className = `state ${words.split(",")[0].replace(" ", "-")}`;
  }

  connected(state) {
    this.connection = state;
    const running = state !== "stopped";
    if (running !== this.view.about.running) {
      this.view.about.running = running;
      this.shown = null;
      this.soon();
    }
    this.say();
  }

  judge(reference) {
    this.view.reference = reference.trim();
    this.show(true);
  }

  maths(on) {
    setMaths(on);
    this.show(true);
  }

  key(event) {
    if (event.key !== "/" || event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    document.querySelector("input[type=search]").focus();
  }

  // New lines have come: show them, but not oftener than the eye follows.
  soon() {
    this.timer ??= setTimeout(() => {
      this.timer = null;
      this.view.refresh();
      this.say();
      this.show(false);
    }, REFRESH_MS);
  }

  async show(asked) {
    const [name, ...rest] = location.hash.replace(/^#\//, "").split("/").map(decode);
    const version = this.version(name, rest);
    if (!asked && version === this.shown) return;
    const turn = ++this.turn;
    const content = await this.content(name, rest);
    if (turn !== this.turn) return; // another view was asked for meanwhile
    this.shown = version;
    this.put(content.flat(Infinity).filter(Boolean), asked);
    if (name === "") this.keep();
  }

  version(name, rest) {
    if (name === "trace" || name === "compare")
      return `${location.hash} ${rest
        .slice(0, 2)
        .map((id) => this.view.run.trace(id)?.version)
        .join()} ${this.view.run.finished}`;
    return `${location.hash} ${this.view.run.lines}`;
  }

  content(name, rest) {
    if (name === "trace")
      return tracePage(this.view, rest[0], rest[1] === "at" ? { at: Number(rest[2]), length: Number(rest[3]) } : null);
    if (name === "compare") return comparePage(this.view, rest[0], rest[1]);
    if (name === "search") return searchPage(this.view, rest.join("/"));
    return [h("h1", { class: "unseen" }, "How this run came to its answer"), ...overview(this.view)];
  }

  put(nodes, asked) {
    const { scrollY } = window;
    const key = document.activeElement?.dataset?.key;
    const open = [...this.main.querySelectorAll("details[open] > summary")].map((summary) => summary.textContent);
    const sideways = [...this.main.querySelectorAll(".scroller")].map((scroller) => scroller.scrollLeft);
    this.main.replaceChildren(...nodes);
    const title = this.main.querySelector("h1")?.textContent ?? "";
    if (asked) {
      window.scrollTo(0, 0);
      this.main.focus({ preventScroll: true });
      announce(title);
      return;
    }
    for (const summary of this.main.querySelectorAll("summary"))
      summary.parentElement.open = open.includes(summary.textContent);
    [...this.main.querySelectorAll(".scroller")].forEach((scroller, i) => (scroller.scrollLeft = sideways[i] ?? 0));
    window.scrollTo(0, scrollY);
    if (key)
      [...this.main.querySelectorAll("[data-key]")]
        .find((one) => one.dataset.key === key)
        ?.focus({ preventScroll: true });
  }

  // What was kept of each tail is worked out after the first view and then drawn into it.
  keep() {
    const { turn } = this;
    this.view.keepShares((edge, kept) => {
      if (turn !== this.turn) return;
      thicken(this.main, edge, kept);
      fillShare(this.main, edge, kept);
    });
  }
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

async function openFile(data) {
  const run = new Run();
  data.lines.forEach((line) => run.add(line));
  const view = new View(run, new Texts(data.places), data.about);
  const block = document.getElementById("trail");
  const app = new App(view, block && (async () => download(data.about.name, await (await unpack(block)).blob())));
  await app.show(true);
  return app;
}

async function openLive(about) {
  const texts = new Texts();
  const run = new Run();
  const slimmer = new Slimmer(texts);
  const url = `${about.base}/v1/runs/${encodeURIComponent(about.run_id)}`;
  const view = new View(run, texts, about);
  const app = new App(view, async () => download(`${about.run_id}.jsonl`, await (await ask(`${url}/trail`)).blob()));
  globalThis.mrsa = { run, texts, view, app };
  await app.show(true);
  const take = (data, line) => {
    try {
      const raw = JSON.parse(data);
      if ((raw.run_id ?? about.run_id) !== about.run_id) throw new Error("it belongs to another run");
      run.add(slimmer.add(raw, data));
    } catch {
      about.problems = [...(about.problems ?? []), { line, reason: "it is damaged", shown: false }];
    }
    app.soon();
  };
  const place = { last: 0 };
  const watch = async () => {
    try {
      await follow(`${url}/events`, place, {
        onLine: take,
        onState: (state) => app.connected(state),
        isOver: () => run.finished,
      });
      announce(
        `The run is finished: ${amount(run.tokens, "token")}, answer ${visible(cut(flat(run.selection?.answer ?? ""), 80)) || "none"}`,
      );
    } catch (error) {
      app.main.replaceChildren(refusal(error, () => (app.show(true), watch())));
    }
  };
  watch();
  return app;
}

async function open() {
  applyTheme();
  skipLink();
  const data = await (await unpack(document.getElementById("run"))).json();
  const app = await (data.about.mode === "file" ? openFile(data) : openLive(data.about));
  globalThis.mrsa = { run: app.view.run, texts: app.view.texts, view: app.view, app };
  requestAnimationFrame(() => performance.mark("shown"));
  document.documentElement.dataset.ready = "yes";
}

open();
