// The reader's position in each entry of the tab's history: Back leads to it, a new link to the top.

import { focusIn } from "./dom_diff.js";

export class HistoryPosition {
  // `more()` returns further values to keep with a position.
  constructor(main, more = () => ({})) {
    Object.assign(this, { main, more, left: new Map() });
    history.scrollRestoration = "manual";
    this.place = this.arrive(); // kept over a reload
    const keep = () => history.replaceState({ entry: this.entry, place: this.here() }, "");
    for (const end of ["beforeunload", "pagehide"]) addEventListener(end, keep); // pagehide is too late for a reload
  }

  here() {
    return { y: window.scrollY, focus: focusIn(this.main), ...this.more() };
  }

  // Note that another entry is shown now. Returns the position in it, or null for a new entry.
  move() {
    this.left.set(this.entry, this.here());
    return this.arrive();
  }

  arrive() {
    const { entry, place } = history.state ?? {};
    this.entry = entry ?? `${Date.now()} ${Math.random()}`;
    if (!entry) history.replaceState({ entry: this.entry }, "");
    return this.left.get(this.entry) ?? place ?? null;
  }
}
