// The parts of a tail that its reader kept: runs of characters that are in both.

// The shortest run that counts, in characters: in long tails short runs coincide by chance.
function minLength(tail) {
  return tail.length < 600 ? 10 : 24;
}

// The runs that `text` shares with `tail`, greedily from the left, each as long as possible: [{from, to, at}], `at` in the
// tail. No run starts with blanks only: a model that repeats blanks would keep the page busy for minutes.
export function sharedRuns(text, tail) {
  const k = minLength(tail);
  const places = new Map();
  for (let i = 0; i + k <= tail.length; i++) {
    const gram = tail.slice(i, i + k);
    if (!gram.trim()) continue;
    const known = places.get(gram);
    if (!known) places.set(gram, [i]);
    else if (known.length < 8) known.push(i);
  }
  const runs = [];
  for (let i = 0; i + k <= text.length;) {
    const best = longest(text, i, tail, places.get(text.slice(i, i + k)) ?? [], k);
    if (!best) i++;
    else {
      runs.push(best);
      i = best.to;
    }
  }
  return runs;
}

function longest(text, from, tail, starts, k) {
  let best = null;
  for (const at of starts) {
    let length = k;
    while (from + length < text.length && at + length < tail.length && text[from + length] === tail[at + length])
      length++;
    if (!best || length > best.to - best.from) best = { from, to: from + length, at };
  }
  return best;
}

// The share of the tail that is in some run.
export function keptShare(tail, runs) {
  if (!tail.length) return 0;
  const ranges = runs.map(({ from, to, at }) => [at, at + to - from]).sort(([a], [b]) => a - b);
  let covered = 0;
  let end = 0;
  for (const [from, to] of ranges) {
    covered += Math.max(0, to - Math.max(from, end));
    end = Math.max(end, to);
  }
  return covered / tail.length;
}
