// A word cloud: each word as large as its number, none over another.

const MOST = 80;
let ruler = null;

/** How wide a text of one pixel's height is. */
function width(text) {
  ruler ??= document.createElement('canvas').getContext('2d');
  ruler.font = '600 100px system-ui, sans-serif';
  return ruler.measureText(text).width / 100;
}

/** Words at their places: {text, value, x, y, size, turn}[], within `wide` × `high`, the largest in the middle. */
export function cloud(items, wide, high) {
  const words = items
    .map(({ text, value }) => ({ text: text === null ? 'null' : String(text).slice(0, 40), value: Math.max(0, Number(value) || 0) }))
    .filter((word) => word.value > 0)
    .sort((a, b) => b.value - a.value)
    .slice(0, MOST);
  const largest = words[0]?.value ?? 1;
  // By the square root, so that areas compare as the numbers do; together they take half of the room.
  const area = words.reduce((sum, word) => sum + 1.15 * width(word.text) * (word.value / largest), 0);
  const widest = Math.max(...words.map((word) => width(word.text) * Math.sqrt(word.value / largest)), 1);
  let top = Math.min(high / 3, (0.9 * wide) / widest, Math.sqrt((0.5 * wide * high) / Math.max(area, 0.01)));
  for (let tries = 0; ; tries++) {
    const placed = place(words, largest, top, wide, high);
    if (placed.length === words.length || tries === 6) return placed;
    top *= 0.85;
  }
}

/** From the middle outwards, along a spiral; a word without room is left out. */
function place(words, largest, top, wide, high) {
  const taken = [];
  const placed = [];
  for (const word of words) {
    const size = Math.max(10, top * Math.sqrt(word.value / largest));
    const [w, h] = [width(word.text) * size + 6, size * 1.15];
    for (let step = 0; step < 700; step++) {
      const turn = step * 0.35;
      const far = 2.2 * turn;
      const x = wide / 2 + far * Math.cos(turn) * Math.min(1.8, wide / high);
      const y = high / 2 + far * Math.sin(turn);
      const box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2];
      if (box[0] < 0 || box[1] < 0 || box[2] > wide || box[3] > high) continue;
      if (taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1])) continue;
      taken.push(box);
      placed.push({ ...word, x, y, size });
      break;
    }
  }
  return placed;
}
