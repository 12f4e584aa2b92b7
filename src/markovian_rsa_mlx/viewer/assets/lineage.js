// Who reads whom, from the settings and the run's seed alone (design document, section 1.2, version 1).

const K = [];
const START = [];
for (let n = 2; K.length < 64; n++) {
  let prime = true;
  for (let d = 2; d * d <= n; d++) if (n % d === 0) prime = false;
  if (!prime) continue;
  const fraction = (x) => ((x - Math.floor(x)) * 2 ** 32) | 0;
  if (START.length < 8) START.push(fraction(Math.sqrt(n)));
  K.push(fraction(Math.cbrt(n)));
}

// SHA-256 of a short ASCII text; its first eight bytes as a BigInt. (crypto.subtle is missing on plain HTTP.)
function hash64(text) {
  const words = new Int32Array((((text.length + 8) >> 6) + 1) * 16);
  for (let i = 0; i < text.length; i++) words[i >> 2] |= text.charCodeAt(i) << (24 - (i % 4) * 8);
  words[text.length >> 2] |= 0x80 << (24 - (text.length % 4) * 8);
  words[words.length - 1] = text.length * 8;
  const state = START.slice();
  const w = new Int32Array(64);
  const turn = (x, n) => (x >>> n) | (x << (32 - n));
  for (let block = 0; block < words.length; block += 16) {
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      if (i < 16) w[i] = words[block + i];
      else {
        const s0 = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ (w[i - 15] >>> 3);
        const s1 = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ (w[i - 2] >>> 10);
        w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
      }
      const t1 = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + K[i] + w[i]) | 0;
      const t2 = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + t2) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((x, i) => (state[i] = (state[i] + x) | 0));
  }
  return (BigInt(state[0] >>> 0) << 32n) | BigInt(state[1] >>> 0);
}

export function traceId(round, index) {
  return `r${round}-${String(index).padStart(2, "0")}`;
}

export function placeOf(id) {
  const match = /^r(\d+)-(\d{2,})$/.exec(id);
  return match ? { round: Number(match[1]), index: Number(match[2]) } : null;
}

// How many final candidates there are: F, with its defaults resolved.
export function finalCount(config) {
  if (config.final_candidates === null || config.final_candidates === undefined) {
    return config.rounds === 0 ? config.population : 1;
  }
  return config.final_candidates || config.population;
}

function drawParents(config, seed, round, index) {
  if (config.aggregation_size === 1) return [traceId(round - 1, index)];
  const pool = Array.from({ length: config.population }, (_, i) => i);
  for (let place = 0; place < config.aggregation_size; place++) {
    const word = hash64(`mrsa-lineage-1|parents|${seed}|${round}|${index}|${place}`);
    const other = place + Number(word % BigInt(config.population - place));
    [pool[place], pool[other]] = [pool[other], pool[place]];
  }
  return pool.slice(0, config.aggregation_size).map((i) => traceId(round - 1, i));
}

// More nodes than this no browser draws in good time.
const MOST = 4000;

// All needed traces, in round and index order: [{id, round, index, parents}]; none where they are too many to draw.
export function neededTraces(config, seed) {
  const { rounds, population, aggregation_size } = config;
  if (![rounds, population, aggregation_size].every(Number.isInteger) || rounds > 1000 || population > 10000) return [];
  if (population < 1 || aggregation_size < 1 || aggregation_size > population) return [];
  if (finalCount(config) > MOST) return [];
  const finals = Array.from({ length: finalCount(config) }, (_, i) => traceId(rounds, i));
  const found = new Map();
  const ask = (id, round, parents) => found.set(id, { id, round, index: placeOf(id).index, parents });
  if (config.answer_selection === "final_aggregation") {
    ask(traceId(rounds + 1, 0), rounds + 1, finals.slice(0, aggregation_size));
  }
  let wanted = finals;
  for (let round = rounds; round >= 0; round--) {
    const next = new Set();
    for (const id of wanted) {
      const parents = round === 0 ? [] : drawParents(config, seed, round, placeOf(id).index);
      ask(id, round, parents);
      parents.forEach((parent) => next.add(parent));
    }
    if (found.size + next.size > MOST) return [];
    wanted = [...next];
  }
  return [...found.values()].sort((a, b) => a.round - b.round || a.index - b.index);
}
