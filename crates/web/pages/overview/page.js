// The page: the header, the figures, the inputs, and a card for each view.

import { History, Spark } from './chart.js';
import { follow } from './feed.js';
import { bytes, clock, count, h, long, rate, say, span } from './format.js';
import { Card } from './view.js';

const $ = (id) => document.getElementById(id);
const PHASES = { running: 'good', starting: 'warn', stopping: 'warn', failed: 'bad' };
const AWAITED = {
  starting: 'The program recovers its state and opens its inputs. Views appear here after their first batch.',
  running: 'No view has rows yet. Each appears here after its first batch.',
};

const history = new History();
const cards = new Map();
let program = null;
let skew = 0;
let heard = null;

const figures = [
  ['Records/s', 'rate', rate],
  ['Processing delay', 'processing', span],
  ['Scheduling delay', 'delay', span],
].map(([name, key, format]) => {
  const card = h('section', 'card figure');
  const value = h('output', '', '–');
  const peak = h('span', 'peak quiet');
  const spark = new Spark(`${name} over time`);
  card.append(h('h2', '', name), peak, value, spark.svg);
  $('figures').append(card);
  return { key, format, value, peak, spark };
});

const totals = Object.fromEntries(
  [['records_in', 'Records'], ['batches', 'Batches'], ['refused', 'Refused'], ['late', 'Late']].map(([key, name]) => {
    const value = h('dd', '', '–');
    $('totals').append(h('dt', '', name), value);
    return [key, value];
  }),
);

const on = {
  line(wait) {
    $('lost').hidden = wait === null;
    if (wait === null) return;
    const since = heard ? ` What you see is from ${clock(heard)}.` : '';
    say($('lost'), `No connection to the program; trying again in ${wait} s.${since}`);
    if (!program) say($('phase'), 'not reached');
  },

  phase(news) {
    if (program && news.started !== program.started) history.clear();
    program = news;
    heard = news.now;
    skew = news.now / 1000 - Date.now();
    const name = news.name || 'Tidemill';
    say($('name'), name, true);
    document.title = name === 'Tidemill' ? name : `${name} · Tidemill`;
    say($('phase'), news.phase);
    $('phase').className = `phase ${PHASES[news.phase] ?? ''}`;
    $('error').hidden = news.error === null;
    say($('error'), news.error ?? '');
    for (const [key, value] of Object.entries(totals)) {
      say(value, count(news[key]));
      value.title = news[key].toLocaleString('en');
      if (key === 'refused' || key === 'late') value.className = news[key] > 0 ? 'warn' : '';
    }
    for (const [view, card] of cards) {
      if (news.views.includes(view)) continue;
      card.element.remove();
      cards.delete(view);
    }
    awaited();
    tick();
  },

  batch({ fresh, reports }) {
    if (fresh) history.clear();
    reports.forEach((report) => history.add(report));
    if (reports.length) heard = Math.max(heard ?? 0, Date.now() * 1000 + skew * 1000);
    draw();
  },

  view(view) {
    let card = cards.get(view.name);
    if (!card) {
      cards.set(view.name, (card = new Card(view.name)));
      // By name, so that a reload shows the same page.
      const next = [...cards.keys()].filter((name) => name > view.name).sort()[0];
      $('views').insertBefore(card.element, next === undefined ? null : cards.get(next).element);
    }
    card.update(view);
    awaited();
  },

  inputs(inputs) {
    const list = inputs.map((input) => {
      const item = h('li');
      const top = h('div', 'top');
      const several = inputs.filter((other) => other.stream === input.stream).length > 1;
      const name = h('b', 'cut', several ? `${input.stream} #${input.index}` : input.stream);
      name.dir = 'auto';
      name.title = name.textContent;
      top.append(h('span', `dot ${mood(input.state)}`), name, h('span', '', count(input.records)));
      const state = h('p', 'small', input.state || 'has not reported yet');
      state.dir = 'auto';
      const what = h('p', 'small', `${input.describe}${input.describe ? ' · ' : ''}${bytes(input.bytes)}`);
      what.dir = 'auto';
      item.append(top, state, what);
      return item;
    });
    $('inputs').replaceChildren(...(list.length ? list : [h('li', 'await', 'Waiting for the first input to report.')]));
  },
};

/** A hint by colour; the text beside it is what counts. */
function mood(state) {
  if (/connecting|retry|again|wait|behind/i.test(state)) return 'warn';
  if (/fail|error|lost|refused|denied/i.test(state)) return 'bad';
  return state ? 'good' : '';
}

/** Says what is awaited where no view is. */
function awaited() {
  let note = $('awaited');
  if (cards.size) return note?.remove();
  if (!note) {
    note = h('p', 'await');
    note.id = 'awaited';
    $('views').append(note);
  }
  say(note, AWAITED[program?.phase] ?? (program ? 'This program has ended without a view.' : 'Waiting for the program.'));
}

function draw() {
  const { points, last } = history;
  for (const { key, format, value, peak, spark } of figures) {
    const present = key === 'rate' ? history.rate() : points.at(-1)?.[key] ?? last?.[key === 'delay' ? 'scheduling_delay_us' : 'processing_us'];
    say(value, present === null || present === undefined ? '–' : format(present));
    const largest = spark.draw(points.map((point) => point[key]));
    say(peak, points.length > 1 ? `peak ${format(largest)}` : 'waiting for batches');
  }
}

/** What changes by itself: the uptime, and a rate that has fallen silent. */
function tick() {
  if (!program) return;
  const now = Date.now() + skew;
  const ended = program.phase === 'stopped' || program.phase === 'failed';
  if (!program.started) say($('uptime'), '');
  else if (!ended) say($('uptime'), `up ${long(now / 1000 - program.started / 1e6)}`);
  else say($('uptime'), `started ${new Date(program.started / 1000).toLocaleString()}`);
  const silent = history.last && now * 1000 - heard > Math.max(3e6, 3 * history.pace());
  if (silent) say(figures[0].value, rate(0));
}

on.inputs([]);
awaited();
draw();
setInterval(tick, 1000);
follow(on);
