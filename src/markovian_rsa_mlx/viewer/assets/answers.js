// What a trace answers, by the rules of the method (design document, section 1.5), where only its text is at hand.

const BOXED = /\\boxed\s*\{/g;
const FINAL_LINE =
  /(?<![^\n])[ \t\r\f\v>*_#-]*(?:the\s+|my\s+)?(?:final\s+)?answer\s*(?:(?:\*\*|__)\s*)?(?::|=|\bis\b:?)\s*(?:(?:\*\*|__)\s*)?(\S[^\n]*)(?![^\n])/gi;

export function extractAnswer(text, kind) {
  const boxed = lastBoxed(text);
  if (boxed) return boxed;
  if (kind === "text") return text.search(BOXED) >= 0 ? "" : text.trim();
  const lines = [...text.matchAll(FINAL_LINE)];
  return lines.length ? strip(lines.at(-1)[1].trim(), "*_", "*_").trim() : "";
}

// One pass, however many boxes are left open.
function lastBoxed(text) {
  const starts = new Set([...text.matchAll(BOXED)].map((box) => box.index + box[0].length));
  const opened = [];
  let found = [-1, ""];
  for (let i = Math.min(...[...starts].slice(0, 1), text.length) - 1; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "{") opened.push(i + 1);
    else if (text[i] === "}" && opened.length) {
      const start = opened.pop();
      const content = starts.has(start) && start > found[0] ? text.slice(start, i).trim() : "";
      if (content) found = [start, content];
    }
  }
  return found[1];
}

export function normalise(answer) {
  return strip(flatAnswer(answer.normalize("NFKC").replaceAll("$", " ")), "", ". ");
}

// `text` without these characters at its start and at its end (a regular expression would take long over long runs).
function strip(text, atStart, atEnd) {
  let [from, to] = [0, text.length];
  while (from < to && atStart.includes(text[from])) from++;
  while (to > from && atEnd.includes(text[to - 1])) to--;
  return text.slice(from, to);
}

function flatAnswer(text) {
  return text
    .split(/[\s\x1c-\x1f\x85]+/)
    .filter(Boolean)
    .join(" ");
}

// Where the first end-of-thinking text begins and ends, or null.
export function afterThinking(text, endTexts) {
  const places = endTexts.filter(Boolean).map((marker) => [text.indexOf(marker), marker.length]);
  const found = places.filter(([start]) => start >= 0).sort(([a, x], [b, y]) => a - b || x - y);
  return found.length ? [found[0][0], found[0][0] + found[0][1]] : null;
}

export function endsThinking(ids, markers) {
  return markers.some((marker) => {
    for (let i = 0; i + marker.length <= ids.length; i++) if (marker.every((id, k) => ids[i + k] === id)) return true;
    return false;
  });
}
