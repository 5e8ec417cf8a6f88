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

/** An instant in microseconds, to the second, as the viewer's place writes it. */
export const instant = (us) => new Date(us / 1000).toLocaleString();

/** A button that does something. */
export function button(text, act, className = 'plain') {
  const made = h('button', className, text);
  made.type = 'button';
  made.addEventListener('click', act);
  return made;
}

/** A table of texts; a cell is a text or an element, and `numbers` are the places of columns of numbers. */
export function table(heads, rows, numbers = []) {
  const made = h('table');
  const head = made.createTHead().insertRow();
  heads.forEach((name, i) => {
    const cell = h('th', numbers.includes(i) ? 'number' : '', name);
    cell.scope = 'col';
    head.append(cell);
  });
  const body = made.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((value, i) => {
      const cell = line.insertCell();
      if (numbers.includes(i)) cell.className = 'number';
      else cell.dir = 'auto';
      if (value instanceof Node) cell.append(value);
      else say(cell, String(value ?? ''), true);
    });
  }
  return made;
}

/** `act` at once, and again at most every `rest` milliseconds, however often it is asked for. */
export function calm(act, rest) {
  let [resting, asked] = [false, false];
  return function calmed() {
    asked = resting;
    if (resting) return;
    act();
    resting = true;
    setTimeout(() => {
      resting = false;
      if (asked) calmed();
    }, rest);
  };
}

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
