// What a trace answers, by the rules of the method (design document, section 1.5), where only its text is at hand.

const BOXED = /\\boxed\s*\{/g;
const FINAL_LINE =
  /(?<![^\n])[\s>*_#-]*(?:the\s+|my\s+)?(?:final\s+)?answer\s*(?:\*\*|__)?\s*(?::|=|\bis\b:?)\s*(?:\*\*|__)?\s*(\S[^\n]*)(?![^\n])/gi;

export function extractAnswer(text, kind) {
  const boxes = [...text.matchAll(BOXED)].reverse();
  for (const box of boxes) {
    const content = balanced(text, box.index + box[0].length);
    if (content) return content;
  }
  if (kind === "text") return boxes.length ? "" : text.trim();
  const lines = [...text.matchAll(FINAL_LINE)];
  return lines.length ? lines.at(-1)[1].trim().replace(/^[*_]+|[*_]+$/g, "").trim() : "";
}

function balanced(text, start) {
  let depth = 1;
  for (let i = start; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "{") depth++;
    else if (text[i] === "}" && --depth === 0) return text.slice(start, i).trim();
  }
  return "";
}

export function normalise(answer) {
  return flatAnswer(answer.normalize("NFKC").replaceAll("$", " ")).replace(/[. ]+$/, "");
}

function flatAnswer(text) {
  return text.split(/[\s\x1c-\x1f\x85]+/).filter(Boolean).join(" ");
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
