// The page of one run: data from the page itself or from the stream of a server, a route in the address, a view for it.

import { comparePage } from "./compare.js";
import { download, h, missing, oneLine } from "./dom.js";
import { onRelease, refocus, renew, replaceAll } from "./dom_diff.js";
import { HistoryPosition } from "./history_position.js";
import { thicken } from "./lineage_graph.js";
import { openLive } from "./live.js";
import { canRenderMaths, setMaths } from "./maths.js";
import { overview } from "./overview.js";
import { announce, applyTheme, skipLink, themeSwitch } from "./page_shell.js";
import { Run } from "./run.js";
import { searchPage } from "./search.js";
import { fillShare } from "./table.js";
import { completeAll, forgetGone, revealFound } from "./text.js";
import { TextStore, unpack } from "./text_store.js";
import { tracePage } from "./trace.js";
import { View } from "./view.js";

const REFRESH_MS = 400;
const CONNECTION_STATES = { refused: "not connected", lost: "connection lost, trying again" };

class App {
  constructor(view, trail) {
    Object.assign(this, {
      view,
      trail,
      main: document.getElementById("main"),
      connection: null,
      shown: null, // the version that is shown
      turn: 0,
      timer: null,
      wait: REFRESH_MS,
      isVisit: false, // whether the next view follows an action of the reader
      place: null, // the reader's place at an earlier visit
      goal: null, // the place to scroll to, as long as it can still appear
      refusal: null, // shown in place of the run
      title: document.title,
      announced: null, // the last announced heading
    });
    this.history = new HistoryPosition(this.main);
    this.place = this.history.place;
    addEventListener("hashchange", () => {
      this.place = this.history.move();
      this.show(true);
    });
    for (const act of ["wheel", "touchstart", "pointerdown", "keydown"])
      addEventListener(act, () => (this.goal = null), { passive: true });
    onRelease(() => this.isLate && this.refreshSoon());
    addEventListener("beforeprint", completeAll);
    addEventListener("keydown", (event) => this.onKey(event));
    this.makeHeader();
  }

  makeHeader() {
    const { base, links } = this.view.about;
    const label = "Search in all texts";
    const placeholder = "Search all texts ( / )";
    const search = h("input", { type: "search", name: "search", "aria-label": label, placeholder });
    const openSearch = (event) => {
      event.preventDefault();
      location.hash = `#/search/${encodeURIComponent(search.value)}`;
    };
    const update = (change) => (event) => {
      change(event.target);
      this.shown = null;
      this.show(false);
    };
    const judge = update((field) => (this.view.reference = field.value.trim()));
    const value = this.view.reference;
    const reference = h("input", { type: "text", name: "reference", size: 10, value, onchange: judge });
    const maths = h("input", { type: "checkbox", name: "maths", onchange: update((box) => setMaths(box.checked)) });
    const save = (event) => this.saveTrail(event.target);
    const trail = this.trail
      ? h("button", { type: "button", onclick: save }, "Download trail")
      : links
        ? h("a", { href: links.trail }, "Trail (JSON lines)")
        : h("span", { class: "minor" }, "The trail is too large for this page. The settings have its path.");
    this.state = h("span", { class: "state" });
    const menu = h(
      "div",
      { class: "menu" },
      h("label", {}, "Right answer ", reference),
      canRenderMaths() ? h("label", {}, maths, " Render maths") : null,
      themeSwitch(),
      trail,
    );
    const all = links
      ? [h("a", { href: links.home }, "Report")]
      : base === undefined
        ? []
        : [h("a", { href: `${base}/` }, "All runs")];
    document
      .getElementById("header")
      .replaceChildren(
        ...all,
        h("a", { href: "#/", class: "home" }, this.name()),
        this.state,
        h("form", { role: "search", onsubmit: openSearch }, search),
        h("details", { class: "more" }, h("summary", {}, "Options"), menu),
      );
    this.showState();
  }

  name() {
    const { start } = this.view.run;
    return start ? `Run ${oneLine(start.run_id, 9)}` : "Run";
  }

  showState() {
    const { run, running } = this.view;
    document.querySelector("header .home").textContent = this.name(); // a live page receives it late
    const words = run.finished
      ? "finished"
      : (CONNECTION_STATES[this.connection] ?? (running ? "running" : "unfinished"));
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
    const running = state === "live" || (state !== "stopped" && before); // a lost connection does not change it
    if (running !== before) {
      this.view.about.running = running;
      this.shown = null;
      this.refreshSoon();
    }
    this.showState();
  }

  async saveTrail(button) {
    button.parentElement.querySelector("[role=alert]")?.remove();
    try {
      await this.trail();
    } catch (error) {
      button.after(h("span", { role: "alert", class: "missing" }, `Download failed: ${error.message}`));
    }
  }

  onKey(event) {
    if (event.key !== "/" || event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    document.querySelector("input[type=search]").focus();
  }

  // Show only this, and nothing of the run, until the server accepts the page.
  showInstead(node) {
    clearTimeout(this.timer);
    this.timer = this.shown = null;
    this.turn++;
    this.refusal = node;
    this.connected("refused");
    replaceAll(this.main, [node]);
    forgetGone();
    announce((node.querySelector("h1") ?? node).textContent);
    (node.querySelector("input") ?? this.main).focus();
  }

  // Show new lines, but not more often than the eye can follow, nor for most of the processor's time.
  refreshSoon() {
    this.timer ??= setTimeout(async () => {
      this.timer = null;
      const started = performance.now();
      await this.show(false);
      this.wait = Math.max(REFRESH_MS, 3 * (performance.now() - started));
    }, this.wait);
  }

  async show(isVisit) {
    this.isVisit ||= isVisit;
    if (this.refusal) return;
    const [name, ...rest] = location.hash.replace(/^#\//, "").split("/").map(decode);
    const turn = ++this.turn;
    try {
      this.view.refresh();
      this.showState();
      const version = this.version(name, rest);
      if (!this.isVisit && version === this.shown) return;
      const content = await this.content(name, rest);
      if (turn !== this.turn) return; // a later call shows another view
      this.shown = version;
      this.put(content.flat(Infinity).filter(Boolean));
      if (this.main.querySelector("#lineage")) this.drawShares();
    } catch (error) {
      console.error(error);
      if (turn === this.turn) this.showFailure(error);
    }
  }

  // A part that cannot be shown must not prevent other or later ones.
  showFailure(error) {
    Object.assign(this, { shown: null, isVisit: false, place: null, goal: null });
    const ways = [h("a", { href: "#/" }, "Overview"), ", ", h("a", { href: "#/search/" }, "search")];
    replaceAll(this.main, [h("h1", {}, "Not shown"), missing(`This part cannot be shown: ${error.message}. `, ways)]);
  }

  // Changes whenever the view of the address does.
  version(name, rest) {
    const { run, about, running } = this.view;
    if (name !== "trace" && name !== "compare") return `${location.hash} ${about.seen ?? 0} ${running} ${this.view.pulse}`;
    const versions = rest.slice(0, 2).map((id) => run.trace(id)?.version);
    return `${location.hash} ${versions.join()} ${run.outline} ${this.isEmpty()}`;
  }

  // Whether the page of a live run has not received a line yet.
  isEmpty() {
    return this.view.about.mode === "live" && this.view.about.seen === undefined;
  }

  content(name, rest) {
    if (this.isEmpty()) return [missing("Waiting for the first line of the run …")];
    const found = rest[1] === "at" ? { at: Number(rest[2]), length: Number(rest[3]) } : null;
    if (name === "trace") return tracePage(this.view, rest[0], found);
    if (name === "compare") return comparePage(this.view, rest[0], rest[1]);
    if (name === "search") return searchPage(this.view, rest.join("/"));
    return [h("h1", { class: "unseen" }, "Overview of the run"), ...overview(this.view)];
  }

  put(nodes) {
    const { isVisit, place } = this;
    this.isVisit = false;
    this.place = null;
    if (isVisit) replaceAll(this.main, nodes);
    this.isLate = !isVisit && renew(this.main, nodes);
    if (this.isLate) this.shown = null; // a part that the reader holds is replaced later
    forgetGone();
    this.setTitle(isVisit);
    if (isVisit) {
      this.goal = { place };
      window.scrollTo(0, 0);
      this.main.focus({ preventScroll: true });
    }
    if (this.goal) requestAnimationFrame(() => this.scrollToGoal());
  }

  // The title of the page is its heading, which can arrive late on a live page.
  setTitle(isVisit) {
    const heading = this.main.querySelector("h1");
    const title = heading?.textContent ?? "";
    const { start } = this.view.run;
    const ofRun = start?.prompt ? `${oneLine(start.prompt, 60)} – ${this.name()}` : this.title;
    document.title = !heading || heading.classList.contains("unseen") ? ofRun : `${title} – ${ofRun}`;
    if (title && (isVisit || title !== this.announced)) announce(title);
    this.announced = title;
  }

  // Scroll to the reader's earlier place, or to the place in the address. Repeated with each update until that exists or the
  // reader acts.
  scrollToGoal() {
    if (!this.goal) return;
    const { place } = this.goal;
    if (place) {
      window.scrollTo(0, place.y);
      const isFree = [document.body, this.main].includes(document.activeElement);
      const isFocused = !place.focus || !isFree || refocus(this.main, place.focus);
      if (isFocused && Math.abs(window.scrollY - place.y) < 2) this.goal = null;
    } else if (revealFound(this.main)) this.goal = null;
    if (!this.isEmpty() && this.view.run.finished && this.timer === null) this.goal = null; // all of it is shown
  }

  // The kept share of each tail is computed after the first view and then drawn into it.
  drawShares() {
    const { turn } = this;
    const draw = (edge, kept) => {
      thicken(this.main, edge, kept);
      fillShare(this.main, edge, kept);
    };
    this.view.keepShares(draw, () => turn === this.turn);
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
  const view = new View(run, new TextStore(data.places), data.about);
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
