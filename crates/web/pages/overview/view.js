// One view as a card: bars when it counts something, else a table.

import { button, clock, count, h, number, say } from '../frame/dom.js';
import { t } from '../frame/strings.js';

const BARS = 100;
const ROWS = 200;
const still = matchMedia('(prefers-reduced-motion: reduce)');

/** The card of one view. */
export class Card {
  constructor(name, show) {
    this.element = h('section', 'card view');
    const head = h('div', 'view-head');
    this.title = head.appendChild(h('h2', 'cut'));
    this.title.dir = 'auto';
    say(this.title, name, true);
    this.when = head.appendChild(h('span'));
    if (show) {
      const open = head.appendChild(button('⤢', show, 'plain small'));
      open.setAttribute('aria-label', t('show_chart'));
      open.title = t('show_chart');
    }
    this.body = h('div', 'scroll');
    this.body.tabIndex = 0;
    this.body.setAttribute('role', 'region');
    this.body.setAttribute('aria-label', name);
    this.more = h('p', 'more');
    this.element.append(head, this.body, this.more);
    this.picture = null;
  }

  update(view) {
    const shape = bars(view);
    const kind = view.rows.length === 0 ? Empty : shape ? Bars : Table;
    if (!(this.picture instanceof kind)) {
      this.picture = new kind();
      this.body.replaceChildren(this.picture.element);
      // Charts come before tables, and keep their place while they are empty.
      if (kind !== Empty) this.element.classList.toggle('chart', kind === Bars);
    }
    const shown = this.picture.draw(view, shape);
    say(this.when, t('of_batch', count(view.batch), clock(view.time)));
    const notes = [];
    if (shown < view.total) notes.push(t('first_rows', count(shown), count(view.total)));
    if (view.cut) notes.push(t('cut', count(view.cut)));
    say(this.more, notes.join(' '));
    this.more.hidden = notes.length === 0;
  }
}

/**
 * Which columns make bars: one text and one number, and else at most times
 * that are the same in all rows, as the bounds of a window are.
 */
export function bars({ columns, rows }) {
  const of = (type) => columns.flatMap((column, i) => (column.type === type ? [i] : []));
  const [texts, numbers, times] = [of('text'), of('number'), of('time')];
  if (texts.length !== 1 || numbers.length !== 1 || times.length + 2 !== columns.length) return null;
  if (times.some((t) => rows.some((row) => row[t] !== rows[0][t]))) return null;
  return { text: texts[0], number: numbers[0] };
}

/** What stands where a view has no rows. */
export class Empty {
  constructor() {
    this.element = h('p', 'await');
  }

  draw(view) {
    say(this.element, t('no_rows', count(view.batch)));
    return 0;
  }
}

/** Bars that move to their new places. */
export class Bars {
  constructor() {
    this.element = h('ol', 'bars');
    this.known = new Map();
    /** Movements that may still go on. */
    this.moves = [];
  }

  draw(view, shape) {
    const items = keyed(view.rows.map((row) => ({ text: row[shape.text], value: row[shape.number] })));
    const list = inOrder(items).slice(0, BARS);
    const largest = Math.max(...list.map((item) => Math.abs(Number(item.value)) || 0), 0) || 1;
    const moving = !still.matches && !document.hidden;

    // First: where everything is, also in the middle of a movement. Then change, then move from there.
    const first = new Map();
    if (moving) {
      const origin = this.element.getBoundingClientRect().top;
      for (const [key, bar] of this.known) {
        const fill = bar.fill.getBoundingClientRect().width;
        first.set(key, { top: bar.row.getBoundingClientRect().top - origin, fill });
      }
    }
    this.moves.forEach((move) => move.cancel());
    this.moves = [];
    const keep = new Set(list.map((item) => item.key));
    for (const [key, bar] of this.known) {
      if (!keep.has(key)) {
        bar.row.remove();
        this.known.delete(key);
      }
    }
    const shown = list.map((item) => (item.value === null ? 'null' : number(item.value)));
    this.element.style.setProperty('--digits', Math.max(...shown.map((value) => value.length)));
    list.forEach((item, i) => {
      let bar = this.known.get(item.key);
      if (!bar) this.known.set(item.key, (bar = newBar()));
      text(bar.label, item.text);
      say(bar.count, shown[i]);
      bar.fill.className = Number(item.value) < 0 ? 'fill neg' : 'fill';
      bar.fill.style.width = `${(Math.abs(Number(item.value)) / largest || 0) * 100}%`;
      const there = this.element.children[i];
      if (there !== bar.row) this.element.insertBefore(bar.row, there ?? null);
    });
    if (moving) this.move(list, first);
    return list.length;
  }

  move(list, first) {
    // An update that comes soon shortens the movement, so that bars never lag behind.
    const now = performance.now();
    const duration = Math.min(450, Math.max(120, (now - (this.drawn ?? now - 450)) * 0.9));
    this.drawn = now;
    const timing = { duration, easing: 'cubic-bezier(.2, .7, .2, 1)' };
    const origin = this.element.getBoundingClientRect().top;
    const moves = list.map(({ key }) => {
      const bar = this.known.get(key);
      const top = bar.row.getBoundingClientRect().top - origin;
      return { bar, was: first.get(key), top, fill: bar.fill.getBoundingClientRect().width };
    });
    for (const { bar, was, top, fill } of moves) {
      if (!was) {
        this.moves.push(bar.row.animate([{ opacity: 0 }, { opacity: 1 }], timing));
        continue;
      }
      if (was.top !== top) {
        // What rises passes over what falls.
        const over = { position: 'relative', zIndex: was.top > top ? 1 : 0 };
        const way = [{ ...over, transform: `translateY(${was.top - top}px)` }, { ...over, transform: 'none' }];
        this.moves.push(bar.row.animate(way, timing));
      }
      if (was.fill !== fill) this.moves.push(bar.fill.animate([{ width: `${was.fill}px` }, { width: `${fill}px` }], timing));
    }
  }
}

function newBar() {
  const [row, track, total] = [h('li'), h('div', 'track'), h('span', 'count')];
  const [fill, label] = [h('span', 'fill'), h('span', 'label cut')];
  label.dir = 'auto';
  track.append(fill, label);
  row.append(track, total);
  return { row, fill, label, count: total };
}

/** Gives each item a key; a text that comes twice gets a second one. */
function keyed(items) {
  const times = new Map();
  for (const item of items) {
    const key = JSON.stringify(item.text);
    const n = times.get(key) ?? 0;
    times.set(key, n + 1);
    item.key = `${n} ${key}`;
  }
  return items;
}

/** Keeps an order that the view has, by number or by text; else the largest come first. */
function inOrder(items) {
  const sorted = (before) => items.every((item, i) => i === 0 || before(items[i - 1], item));
  const by = (item) => Number(item.value);
  if (sorted((a, b) => by(a) >= by(b)) || sorted((a, b) => by(a) <= by(b)) || sorted((a, b) => a.text <= b.text)) return items;
  return [...items].sort((a, b) => by(b) - by(a) || (a.key < b.key ? -1 : 1));
}

/** Rows as they are. */
export class Table {
  constructor() {
    this.element = h('table');
    this.head = this.element.createTHead().insertRow();
    this.rows = this.element.createTBody();
  }

  draw({ columns, rows }) {
    const list = rows.slice(0, ROWS);
    fit(this.head, columns.length, () => this.head.appendChild(h('th')));
    columns.forEach((column, i) => {
      this.head.cells[i].className = column.type === 'number' ? 'number' : '';
      say(this.head.cells[i], column.name, true);
    });
    fit(this.rows, list.length, () => this.rows.insertRow());
    list.forEach((row, r) => {
      const line = this.rows.rows[r];
      fit(line, row.length, () => line.insertCell());
      row.forEach((value, i) => {
        const cell = line.cells[i];
        const isNumber = columns[i].type === 'number';
        cell.dir = isNumber ? 'ltr' : 'auto';
        text(cell, isNumber && value !== null ? number(value) : value);
        if (isNumber) cell.classList.add('number');
      });
    });
    return list.length;
  }
}

/** Makes `parent` have `n` children. */
function fit(parent, n, add) {
  while (parent.children.length > n) parent.lastElementChild.remove();
  while (parent.children.length < n) add();
}

/** Shows a value; what is missing looks different from the word "null". */
function text(element, value) {
  element.classList.toggle('null', value === null);
  say(element, value === null ? 'null' : String(value), true);
}
