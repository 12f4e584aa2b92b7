// The page of one run: data from the page itself or from a server's stream, a route in the address, a view for it.

import { announce, applyTheme, skipLink, themeSwitch } from "./chrome.js";
import { comparePage } from "./compare.js";
import { cut, h, visible } from "./dom.js";
import { download } from "./downloads.js";
import { openLive } from "./live.js";
import { canRenderMaths, setMaths } from "./maths.js";
import { overview } from "./overview.js";
import { thicken } from "./picture.js";
import { fill, refocus, renew } from "./renew.js";
import { Run } from "./run.js";
import { searchPage } from "./search.js";
import { fillShare } from "./table.js";
import { completeAll, forgetGone } from "./text.js";
import { Texts, unpack } from "./texts.js";
import { tracePage } from "./trace.js";
import { View } from "./view.js";
import { Visits } from "./visits.js";

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
      wait: REFRESH_MS,
      asked: false, // whether what is being made was asked for by the reader
      place: null, // where the reader was when it was last shown
      title: document.title,
    });
    this.visits = new Visits(this.main);
    addEventListener("hashchange", () => {
      this.place = this.visits.move();
      this.show(true);
    });
    document.addEventListener("selectionchange", () => this.late && this.soon());
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

  // This and nothing of the run, until something is asked for.
  instead(node) {
    clearTimeout(this.timer);
    this.timer = this.shown = null;
    this.turn++;
    fill(this.main, [node]);
  }

  // New lines have come: show them, but not oftener than the eye follows, nor for most of the machine's time.
  soon() {
    this.timer ??= setTimeout(async () => {
      this.timer = null;
      const began = performance.now();
      await this.show(false);
      this.wait = Math.max(REFRESH_MS, 3 * (performance.now() - began));
    }, this.wait);
  }

  async show(asked) {
    this.asked ||= asked;
    const [name, ...rest] = location.hash.replace(/^#\//, "").split("/").map(decode);
    const turn = ++this.turn;
    try {
      this.view.refresh();
      this.say();
      const version = this.version(name, rest);
      if (!this.asked && version === this.shown) return;
      const content = await this.content(name, rest);
      if (turn !== this.turn) return; // another view was asked for meanwhile
      this.shown = version;
      this.put(content.flat(Infinity).filter(Boolean));
      if (name === "") this.keep();
    } catch (error) {
      console.error(error);
      if (turn === this.turn) this.fail(error);
    }
  }

  // One part that cannot be shown does not take the others with it, nor what comes later.
  fail(error) {
    Object.assign(this, { shown: null, asked: false, place: null });
    const sorry = `What the trail holds here cannot be shown (${error.message}). `;
    fill(this.main, [
      h("h1", {}, "Not shown"),
      h("p", { class: "missing" }, sorry, h("a", { href: "#/" }, "Overview"), ", ", h("a", { href: "#/search/" }, "search")),
    ]);
  }

  version(name, rest) {
    if (name === "trace" || name === "compare")
      return `${location.hash} ${rest
        .slice(0, 2)
        .map((id) => this.view.run.trace(id)?.version)
        .join()} ${this.view.run.finished}`;
    return `${location.hash} ${this.view.about.seen ?? 0} ${this.view.running}`;
  }

  content(name, rest) {
    if (name === "trace")
      return tracePage(this.view, rest[0], rest[1] === "at" ? { at: Number(rest[2]), length: Number(rest[3]) } : null);
    if (name === "compare") return comparePage(this.view, rest[0], rest[1]);
    if (name === "search") return searchPage(this.view, rest.join("/"));
    return [h("h1", { class: "unseen" }, "How this run came to its answer"), ...overview(this.view)];
  }

  put(nodes) {
    const { asked, place } = this;
    this.asked = false;
    this.place = null;
    if (asked) fill(this.main, nodes);
    this.late = !asked && renew(this.main, nodes);
    if (this.late) this.shown = null; // what is selected stays until it is let go
    forgetGone();
    if (asked) this.arrive(place);
  }

  arrive(place) {
    const heading = this.main.querySelector("h1");
    const title = heading?.textContent ?? "";
    document.title = heading?.classList.contains("unseen") ? this.title : `${title} – ${this.title}`;
    announce(title);
    window.scrollTo(0, place?.y ?? 0);
    if (place) requestAnimationFrame(() => window.scrollTo(0, place.y)); // over what a link into a text reveals
    if (!refocus(this.main, place?.focus)) this.main.focus({ preventScroll: true });
  }

  // What was kept of each tail is worked out after the first view and then drawn into it.
  keep() {
    const { turn } = this;
    this.view.keepShares(
      (edge, kept) => {
        thicken(this.main, edge, kept);
        fillShare(this.main, edge, kept);
      },
      () => turn === this.turn,
    );
  }
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

async function openFile(data, makeApp) {
  const run = new Run();
  data.lines.forEach((line) => run.add(line));
  const view = new View(run, new Texts(data.places), data.about);
  const block = document.getElementById("trail");
  const app = makeApp(view, block && (async () => download(data.about.name, await (await unpack(block)).blob())));
  await app.show(true);
}

async function open() {
  applyTheme();
  skipLink();
  const data = await (await unpack(document.getElementById("run"))).json();
  const makeApp = (view, trail) => {
    const app = new App(view, trail);
    globalThis.mrsa = { run: view.run, texts: view.texts, view, app };
    return app;
  };
  await (data.about.mode === "file" ? openFile(data, makeApp) : openLive(data, makeApp));
  requestAnimationFrame(() => performance.mark("shown"));
  document.documentElement.dataset.ready = "yes";
}

open();
