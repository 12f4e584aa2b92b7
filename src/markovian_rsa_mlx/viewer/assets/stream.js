// The event stream of a run: replayed from the start, resumed after a break from the last line that arrived.
// Uses `fetch`: an `EventSource` cannot send a key.

const KEY = "mrsa-key";
const MAX_WAIT_MS = 5000;

export class Refused extends Error {
  constructor(status, reason = null) {
    super(reason ?? `The server answers ${status}.`);
    this.status = status;
  }
}

export function storedKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

export function storeKey(key) {
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // a browser without storage shows the form again
  }
}

// Send an object to the server of the page. Throws `Refused` with the reason of the server.
export async function send(url, value) {
  return request(url, { "Content-Type": "application/json" }, null, JSON.stringify(value));
}

// Request something from the server of the page, with its key if the tab knows it. Throws `Refused`.
export async function request(url, headers = {}, signal = null, body = null) {
  const key = storedKey();
  const response = await fetch(url, {
    headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers,
    cache: "no-store",
    signal,
    ...(body === null ? {} : { method: "POST", body }),
  });
  if (!response.ok) {
    const { error } = body === null ? {} : await response.json().catch(() => ({}));
    throw new Refused(response.status, error?.message);
  }
  return response;
}

// Call `onLine(data, number)` once for each line of the run after `place.last`, in order, until `isOver()`. `onState`
// receives "live", "lost" or "stopped" (204: no process writes the trail, but a resume can). A connection without any
// data for `silence` ms counts as lost.
export async function follow(url, place, { silence, onLine, onState, isOver }) {
  let wait = 500;
  while (!isOver()) {
    const watch = new Watchdog(silence);
    try {
      const headers = { Accept: "text/event-stream", ...(place.last ? { "Last-Event-ID": String(place.last) } : {}) };
      const response = await request(url, headers, watch.controller.signal);
      if (response.status === 204) {
        onState("stopped");
        await pause(MAX_WAIT_MS);
        continue;
      }
      onState("live");
      for await (const { id, data } of events(response.body, watch)) {
        wait = 500;
        if (id !== null && id <= place.last) continue;
        if (id !== null) place.last = id;
        onLine(data, id);
        if (isOver()) return;
      }
    } catch (error) {
      if (error instanceof Refused && error.status < 500 && error.status !== 429) throw error;
    } finally {
      watch.end();
    }
    onState("lost");
    await pause(wait);
    wait = Math.min(wait * 2, MAX_WAIT_MS);
  }
}

// Aborts its signal after `silence` ms without data.
class Watchdog {
  constructor(silence) {
    this.silence = silence;
    this.controller = new AbortController();
    this.restart();
  }

  restart() {
    this.end();
    this.timer = setTimeout(() => this.controller.abort(), this.silence);
  }

  end() {
    clearTimeout(this.timer);
  }
}

// Wait; shorter if the network comes back earlier.
function pause(ms) {
  return new Promise((done) => {
    const end = () => {
      clearTimeout(timer);
      removeEventListener("online", end);
      done();
    };
    const timer = setTimeout(end, ms);
    addEventListener("online", end);
  });
}

async function* events(body, watch) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { id: null, data: [] };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    watch.restart();
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data.length) yield { id: event.id, data: event.data.join("\n") };
        event = { id: null, data: [] };
      } else if (line.startsWith("data:")) event.data.push(line.slice(line[5] === " " ? 6 : 5));
      else if (line.startsWith("id:")) event.id = Number(line.slice(3)) || null;
    }
  }
}
