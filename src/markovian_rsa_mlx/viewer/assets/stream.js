// A run's event stream: replayed from the start, gone on with after a break from the last line that came.
// `fetch` and not `EventSource`, which can carry no key.

const KEY = "mrsa-key";
const LONGEST_WAIT = 5000;

export class Refused extends Error {
  constructor(status) {
    super(`The server answers ${status}.`);
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
    // a browser that keeps nothing asks again
  }
}

// A request to the page's own server, with the key where one is known. Throws `Refused`.
export async function ask(url, headers = {}, signal = null) {
  const key = storedKey();
  const response = await fetch(url, {
    headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers,
    cache: "no-store",
    signal,
  });
  if (!response.ok) throw new Refused(response.status);
  return response;
}

// Call `onLine(data, number)` for each line of the run behind `place.last`, once, in order, until `isOver()`. `onState` is
// told "live", "lost" or "stopped" (204: nobody writes the trail; it may be gone on with). A connection over which not
// even a sign of life came for `silence` ms is taken for lost.
export async function follow(url, place, { silence, onLine, onState, isOver }) {
  let wait = 500;
  while (!isOver()) {
    const watch = new Watch(silence);
    try {
      const headers = { Accept: "text/event-stream", ...(place.last ? { "Last-Event-ID": String(place.last) } : {}) };
      const response = await ask(url, headers, watch.signal);
      if (response.status === 204) {
        onState("stopped");
        await pause(LONGEST_WAIT);
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
    wait = Math.min(wait * 2, LONGEST_WAIT);
  }
}

// Aborts its signal when nothing was heard for `silence` ms.
class Watch {
  constructor(silence) {
    this.silence = silence;
    this.controller = new AbortController();
    this.heard();
  }

  get signal() {
    return this.controller.signal;
  }

  heard() {
    this.end();
    this.timer = setTimeout(() => this.controller.abort(), this.silence);
  }

  end() {
    clearTimeout(this.timer);
  }
}

// Shorter when the network is back before.
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
    watch.heard();
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
