// The page of one run: data from the page itself or from a server's stream, a route in the address, a view for it.

import { announce, applyTheme, skipLink, themeSwitch } from "./chrome.js";
import { comparePage } from "./compare.js";
import { cut, h, visible } from "./dom.js";
import { download } from "./downloads.js";
import { openLive } from "./live.js";
import { canRenderMaths, setMaths } from "./maths.js";
import { overview } from "./overview.js";
import { thicken } from "./picture.js";
import { fill, refocus, renew, whenLetGo } from "./renew.js";
import { Run } from "./run.js";
import { searchPage } from "./search.js";
import { fillShare } from "./table.js";
import { completeAll, forgetGone, revealFound } from "./text.js";
import { Texts, unpack } from "./texts.js";
import { tracePage } from "./trace.js";
import { View } from "./view.js";
import { Visits } from "./visits.js";

const REFRESH_MS = 400;
const TROUBLE = { refused: "not connected", lost: "connection lost, trying again" };

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
      goal: null, // where the reader is to be led, as long as it may still come
      refusal: null, // what is shown in place of the run
      title: document.title,
      called: null, // the heading that was announced last
    });
    this.visits = new Visits(this.main);
    this.place = this.visits.place;
    addEventListener("hashchange", () => {
      this.place = this.visits.move();
      this.show(true);
    });
    for (const act of ["wheel", "touchstart", "pointerdown", "keydown"])
      addEventListener(act, () => (this.goal = null), { passive: true });
    whenLetGo(() => this.late && this.soon());
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
              ? h("button", { type: "button", onclick: (event) => this.save(event.target) }, "Download trail")
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
      : (TROUBLE[this.connection] ?? (this.view.running ? "running" : "unfinished"));
    this.state.textContent = words;
    this.state.className = `state ${words.split(",")[0].replace(" ", "-")}`;
  }

  connected(state) {
    this.connection = state;
    if (this.refusal && (state === "live" || state === "stopped")) {
      this.refusal = null;
      this.show(true);
    }
    const { running: before } = this.view.about;
    const running = state === "live" || (state !== "stopped" && before); // who does not answer says nothing new
    if (running !== before) {
      this.view.about.running = running;
      this.shown = null;
      this.soon();
    }
    this.say();
  }

  judge(reference) {
    this.view.reference = reference.trim();
    this.shown = null;
    this.show(false);
  }

  maths(on) {
    setMaths(on);
    this.shown = null;
    this.show(false);
  }

  async save(button) {
    button.parentElement.querySelector("[role=alert]")?.remove();
    try {
      await this.trail();
    } catch (error) {
      button.after(h("span", { role: "alert", class: "missing" }, `It cannot be had now: ${error.message}`));
    }
  }

  key(event) {
    if (event.key !== "/" || event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    document.querySelector("input[type=search]").focus();
  }

  // This and nothing of the run, until the server lets the page in.
  instead(node) {
    clearTimeout(this.timer);
    this.timer = this.shown = null;
    this.turn++;
    this.refusal = node;
    this.connected("refused");
    fill(this.main, [node]);
    forgetGone();
    announce((node.querySelector("h1") ?? node).textContent);
    (node.querySelector("input") ?? this.main).focus();
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
    if (this.refusal) return;
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
      if (this.main.querySelector("#lineage")) this.keep();
    } catch (error) {
      console.error(error);
      if (turn === this.turn) this.fail(error);
    }
  }

  // One part that cannot be shown does not take the others with it, nor what comes later.
  fail(error) {
    Object.assign(this, { shown: null, asked: false, place: null, goal: null });
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
        .join()} ${this.view.run.outline} ${this.isEmpty()}`;
    return `${location.hash} ${this.view.about.seen ?? 0} ${this.view.running}`;
  }

  // Whether nothing has come of a live run yet.
  isEmpty() {
    return this.view.about.mode === "live" && this.view.about.seen === undefined;
  }

  content(name, rest) {
    if (this.isEmpty()) return [h("p", { class: "missing" }, "Waiting for the first line of the run …")];
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
    if (this.late) this.shown = null; // what is held stays until it is let go
    forgetGone();
    this.call(asked);
    if (asked) {
      this.goal = { place };
      window.scrollTo(0, 0);
      this.main.focus({ preventScroll: true });
    }
    if (this.goal) requestAnimationFrame(() => this.lead());
  }

  // A page is called by its heading, which on a live page may come late.
  call(asked) {
    const heading = this.main.querySelector("h1");
    const title = heading?.textContent ?? "";
    document.title = !heading || heading.classList.contains("unseen") ? this.title : `${title} – ${this.title}`;
    if (title && (asked || title !== this.called)) announce(title);
    this.called = title;
  }

  // To where the reader was, or what the address names; again with what comes in, until that is there or the reader acts.
  lead() {
    if (!this.goal) return;
    const { place } = this.goal;
    if (place) {
      window.scrollTo(0, place.y);
      const isFree = [document.body, this.main].includes(document.activeElement);
      const isFocused = !place.focus || !isFree || refocus(this.main, place.focus);
      if (isFocused && Math.abs(window.scrollY - place.y) < 2) this.goal = null;
    } else if (revealFound(this.main)) this.goal = null;
    if (!this.isEmpty() && this.view.run.finished) this.goal = null;
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
