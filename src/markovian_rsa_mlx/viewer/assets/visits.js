// Where the reader was in each entry of the tab's history: Back leads to that place again, a new link to the top.

import { focusIn } from "./renew.js";

export class Visits {
  // `more()` is what else is kept with a place.
  constructor(main, more = () => ({})) {
    Object.assign(this, { main, more, left: new Map() });
    history.scrollRestoration = "manual";
    this.place = this.arrive(); // of a page that is loaded again
    const keep = () => history.replaceState({ entry: this.entry, place: this.here() }, "");
    for (const end of ["beforeunload", "pagehide"]) addEventListener(end, keep); // to reload comes too early for the latter
  }

  here() {
    return { y: window.scrollY, focus: focusIn(this.main), ...this.more() };
  }

  // Another entry is shown from now on: where the reader was in it, null for a new one.
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
