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
export async function ask(url, headers = {}) {
  const key = storedKey();
  const response = await fetch(url, {
    headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers,
    cache: "no-store",
  });
  if (!response.ok) throw new Refused(response.status);
  return response;
}

// Call `onLine(data, number)` for each line of the run behind `place.last`, once, in order, until `isOver()`. `onState` is
// told "live", "lost" or "stopped" (204: nobody writes the trail; it may be gone on with).
export async function follow(url, place, { onLine, onState, isOver }) {
  let wait = 500;
  while (!isOver()) {
    try {
      const response = await ask(url, {
        Accept: "text/event-stream",
        ...(place.last ? { "Last-Event-ID": String(place.last) } : {}),
      });
      if (response.status === 204) {
        onState("stopped");
        await new Promise((done) => setTimeout(done, LONGEST_WAIT));
        continue;
      }
      onState("live");
      for await (const { id, data } of events(response.body)) {
        wait = 500;
        if (id !== null && id <= place.last) continue;
        if (id !== null) place.last = id;
        onLine(data, id);
        if (isOver()) return;
      }
    } catch (error) {
      if (error instanceof Refused && error.status < 500 && error.status !== 429) throw error;
    }
    onState("lost");
    await new Promise((done) => setTimeout(done, wait));
    wait = Math.min(wait * 2, LONGEST_WAIT);
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { id: null, data: [] };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
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
