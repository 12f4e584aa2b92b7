// A run on a server: its view lines as they arrive, and the page that shows them.

import { amount, download, oneLine } from "./dom.js";
import { announce, refusal } from "./page_shell.js";
import { Run } from "./run.js";
import { follow, request } from "./stream.js";
import { TextStore } from "./text_store.js";
import { View } from "./view.js";

// `makeApp(view, trail)` makes the page.
export async function openLive({ about }, makeApp) {
  const texts = new TextStore();
  const run = new Run();
  const id = encodeURIComponent(about.run_id);
  const url = `${about.base}/v1/runs/${id}/trail`;
  const app = makeApp(new View(run, texts, about), async () =>
    download(`${about.run_id}.jsonl`, await (await request(url)).blob()),
  );
  await app.show(true);
  const take = (data, number) => {
    const message = JSON.parse(data);
    Object.entries(message.texts ?? {}).forEach(([key, text]) => texts.put(key, text));
    if (message.line) run.add(message.line);
    if (message.problems) about.problems = message.problems;
    if (message.progress) app.view.progressed(message.progress);
    else about.seen = number;
    app.refreshSoon();
  };
  const place = { last: 0 };
  const watch = async () => {
    try {
      await follow(`${about.base}/runs/${id}/view`, place, {
        silence: 1000 * about.silence_s,
        onLine: take,
        onState: (state) => app.connected(state),
        isOver: () => run.finished,
      });
      const answer = oneLine(run.selection?.answer ?? "", 80) || "none";
      announce(`The run is finished: ${amount(run.tokens, "token")}, answer ${answer}`);
    } catch (error) {
      app.showInstead(refusal(error, watch));
    }
  };
  watch();
}
