// A run on a server: its lines as they come, and the page that shows them.

import { announce, refusal } from "./chrome.js";
import { amount, cut, flat, visible } from "./dom.js";
import { download } from "./downloads.js";
import { LineReader } from "./reading.js";
import { Run } from "./run.js";
import { Slimmer } from "./slim.js";
import { ask, follow } from "./stream.js";
import { Texts } from "./texts.js";
import { View } from "./view.js";

// `makeApp(view, trail)` makes the page; `fields` are for `LineReader`.
export async function openLive({ about, fields }, makeApp) {
  const texts = new Texts();
  const run = new Run();
  const slimmer = new Slimmer(texts);
  const reader = new LineReader(fields);
  const url = `${about.base}/v1/runs/${encodeURIComponent(about.run_id)}`;
  const trail = async () => download(`${about.run_id}.jsonl`, await (await ask(`${url}/trail`)).blob());
  const app = makeApp(new View(run, texts, about), trail);
  await app.show(true);
  const take = (data, number) => {
    try {
      const raw = reader.read(data, number);
      if (raw) run.add(slimmer.add(raw, data));
    } catch (error) {
      reader.note(number, `it cannot be taken in (${error.message})`, false);
    }
    about.problems = reader.problems();
    about.seen = number;
    app.soon();
  };
  const place = { last: 0 };
  const watch = async () => {
    try {
      await follow(`${url}/events`, place, {
        silence: 1000 * about.silence_s,
        onLine: take,
        onState: (state) => app.connected(state),
        isOver: () => run.finished,
      });
      announce(
        `The run is finished: ${amount(run.tokens, "token")}, answer ${visible(cut(flat(run.selection?.answer ?? ""), 80)) || "none"}`,
      );
    } catch (error) {
      app.instead(refusal(error, watch));
    }
  };
  watch();
}
