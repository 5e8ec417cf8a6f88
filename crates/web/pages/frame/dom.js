// Numbers and times for people.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const three = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });
const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });

/** A count: exact below ten million, then `12.3M`. */
export const count = (n) => (Math.abs(n) < 1e7 ? whole.format(n) : compact.format(n));

/** A rate: `0`, `3.25`, `812`, `12,345`, `1.23M`. */
export const rate = (n) => (n < 100 ? three.format(n) : n < 1e6 ? whole.format(n) : compact.format(n));

/** A number of a view, which is a string where JavaScript would round it. */
export const number = (n) =>
  typeof n !== 'number' ? String(n) : Number.isInteger(n) ? n.toLocaleString('en') : n.toLocaleString('en', { maximumSignificantDigits: 6 });

/** Bytes: `1.2 MB`. */
export function bytes(n) {
  for (const unit of ['B', 'kB', 'MB', 'GB']) {
    if (n < 1000) return `${three.format(n)} ${unit}`;
    n /= 1000;
  }
  return `${three.format(n)} TB`;
}

/** A span of microseconds: `850 µs`, `3.2 ms`, `1.24 s`, `2 min 3 s`. */
export function span(us) {
  if (us < 1000) return `${three.format(us)} µs`;
  if (us < 999_500) return `${three.format(us / 1000)} ms`;
  if (us < 60e6) return `${three.format(us / 1e6)} s`;
  return long(us / 1e6);
}

/** A long span of seconds, in its two largest units. */
export function long(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const units = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const at = units.findIndex(([size]) => s >= size);
  if (at < 0) return '0 s';
  const [[size, unit], next] = [units[at], units[at + 1]];
  const rest = next && Math.floor((s % size) / next[0]);
  return `${Math.floor(s / size)} ${unit}` + (rest ? ` ${rest} ${next[1]}` : '');
}

/** The time of day of an instant in microseconds. */
export const clock = (us) => new Date(us / 1000).toLocaleTimeString([], { hour12: false });

/** A new element. Text is only ever set as text. */
export function h(tag, className = '', text = '') {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== '') element.textContent = text;
  return element;
}

/** Sets text where it changed, and where it may be cut also as the title. */
export function say(element, text, title = false) {
  if (element.textContent !== text) element.textContent = text;
  if (title && element.title !== text) element.title = text;
}
