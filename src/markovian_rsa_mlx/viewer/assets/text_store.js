// The texts of a run: unpacked from the page when one of them is first needed, or put here by the stream of a live run.

export async function unpack(block) {
  const base64 = block.textContent;
  const bytes = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(base64)
    : Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
}

export class TextStore {
  constructor(places = {}) {
    this.places = places;
    this.known = new Map();
    this.groups = new Map();
  }

  put(key, text) {
    this.known.set(key, text);
  }

  has(key) {
    return this.known.has(key) || Object.hasOwn(this.places, key);
  }

  keys() {
    return [...new Set([...Object.keys(this.places), ...this.known.keys()])];
  }

  // The text, or "" if the trail does not hold it.
  async get(key) {
    if (!this.known.has(key) && Object.hasOwn(this.places, key)) await this.unpackGroup(this.places[key]);
    return this.known.get(key) ?? "";
  }

  unpackGroup(number) {
    if (!this.groups.has(number)) {
      const load = unpack(document.getElementById(`texts-${number}`))
        .then((response) => response.json())
        .then((texts) => Object.entries(texts).forEach(([key, text]) => this.put(key, text)));
      this.groups.set(number, load);
    }
    return this.groups.get(number);
  }

  async tail(trace) {
    return trace?.tail ? (await this.get(trace.tail.text)).slice(trace.tail.from, trace.tail.to) : "";
  }
}

// The parts of the prompt of an `aggregation_prompt` line: [{text, slot}], slot null for the static texts of the run.
export function rebuildPrompt(setup, { quoted }, tails) {
  const [first, ...pieces] = setup.segments[tails.length - 1];
  const parts = tails.flatMap((tail, slot) => [
    { text: quoted[slot] ?? tail, slot },
    { text: pieces[slot], slot: null },
  ]);
  return [{ text: first, slot: null }, ...parts];
}
