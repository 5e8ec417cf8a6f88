// Overview: how the program fares in figures, its inputs, and each view as a card.

import { behind, Spark } from '../frame/chart.js';
import { bytes, calm, count, h, rate, say, span } from '../frame/dom.js';
import { t } from '../frame/strings.js';
import { Card } from './view.js';

const AWAITED = { starting: 'await_starting', running: 'await_running' };
const TOTALS = ['records', 'batches', 'refused', 'late'];
const letters = (report) => Object.values(report.letters).reduce((sum, n) => sum + n, 0);

/** Name, how it is written, the figure of now from the last report, and of a point of the history. */
const FIGURES = [
  ['rate', rate, null, 'rate'],
  ['processing', span, (last) => last.processing_us, 'processing'],
  ['delay', span, (last) => last.scheduling_delay_us, 'delay'],
  ['queued', count, (last) => last.queued, 'queued'],
  ['behind', span, behind, 'behind'],
  ['lag', count, null, 'lag'],
  ['state', bytes, (last) => last.state_bytes, 'state'],
  ['letters', count, null, 'letters'],
];

export function open(root, { store, go }) {
  const figures = h('section', 'figures');
  figures.id = 'figures';
  figures.setAttribute('aria-label', t('figures'));
  const tiles = FIGURES.map(([key, format, now, point]) => {
    const card = h('section', 'card figure');
    const value = h('output', '', '–');
    const peak = h('span', 'peak quiet');
    const spark = new Spark(t(key));
    card.append(h('h2', '', t(key)), peak, value, spark.svg);
    figures.append(card);
    return { key, format, now, point, value, peak, spark, card };
  });
  const room = h('div', 'room');
  const views = h('div', 'views');
  views.id = 'views';
  const side = h('aside');
  const inputs = h('ul', 'inputs');
  inputs.id = 'inputs';
  const sums = h('dl', 'totals');
  sums.id = 'totals';
  side.append(section('inputs', inputs), section('totals', sums));
  room.append(views, side);
  root.append(figures, room);

  const cards = new Map();
  /** What is not read yet, a look a second; as many as a spark has points. */
  const lags = [];
  const totals = TOTALS.map((key) => {
    const value = h('dd', '', '–');
    sums.append(h('dt', '', t(key)), value);
    return value;
  });

  function section(key, body) {
    const made = h('section', 'card');
    const head = h('h2', '', t(key));
    head.id = `${key}-title`;
    made.setAttribute('aria-labelledby', head.id);
    made.append(head, body);
    return made;
  }

  /** Says what is awaited where no view is. */
  function awaited() {
    let note = document.getElementById('awaited');
    if (cards.size) return note?.remove();
    if (!note) {
      note = h('p', 'await');
      note.id = 'awaited';
      views.append(note);
    }
    const { program } = store;
    say(note, t(AWAITED[program?.phase] ?? (program ? 'await_ended' : 'await_program')));
  }

  function draw() {
    const { points, last } = store.history;
    // What came last is no rate of now, once a few batches should have come since.
    const silent = last && performance.now() - store.came > Math.max(3000, (3 * store.history.pace()) / 1000);
    const known = store.inputs.some((input) => input.lag !== null);
    const present = {
      rate: silent ? 0 : store.history.rate(),
      lag: known ? store.inputs.reduce((sum, input) => sum + (input.lag ?? 0), 0) : null,
      letters: store.program && Object.values(store.program.letters).reduce((sum, n) => sum + n, 0),
    };
    for (const { key, format, now, point, value, peak, spark, card } of tiles) {
      const shown = now ? last && now(last) : present[key];
      say(value, shown === null || shown === undefined ? '–' : format(shown));
      const series = key === 'lag' ? lags : points.map((each) => each[point]);
      const largest = spark.draw(series);
      card.classList.toggle('warn', key === 'letters' && present.letters > 0);
      say(peak, points.length > 1 ? t('peak', format(largest)) : t('waits'));
      if (key === 'state' && last?.state_spilled) say(peak, t('spilled', count(last.state_spilled)));
    }
  }

  const on = {
    phase(news) {
      if (!news) return;
      for (const [i, key] of ['records_in', 'batches', 'refused', 'late'].entries()) {
        say(totals[i], count(news[key]));
        totals[i].title = news[key].toLocaleString('en');
        if (key === 'refused' || key === 'late') totals[i].className = news[key] > 0 ? 'warn' : '';
      }
      for (const [view, card] of cards) {
        if (news.views.includes(view)) continue;
        card.element.remove();
        cards.delete(view);
      }
      awaited();
      draw();
    },

    batch: calm(draw, 100),

    view(view) {
      let card = cards.get(view.name);
      if (!card) {
        cards.set(view.name, (card = new Card(view.name, () => go('live', view.name))));
        // By name, so that a reload shows the same page.
        const next = [...cards.keys()].filter((name) => name > view.name).sort()[0];
        views.insertBefore(card.element, next === undefined ? null : cards.get(next).element);
      }
      card.update(view);
      awaited();
    },

    inputs(list) {
      const items = list.map((input) => {
        const item = h('li');
        const top = h('div', 'top');
        const several = list.filter((other) => other.stream === input.stream).length > 1;
        const name = h('b', 'cut', several ? `${input.stream} #${input.index}` : input.stream);
        name.dir = 'auto';
        name.title = name.textContent;
        top.append(h('span', `dot ${mood(input)}`), name, h('span', '', count(input.records)));
        const state = h('p', 'small', input.state || t('no_word'));
        state.dir = 'auto';
        const what = h('p', 'small', `${input.describe}${input.describe && input.bytes ? ' · ' : ''}${input.bytes ? bytes(input.bytes) : ''}`);
        what.dir = 'auto';
        item.append(top, state, what);
        return item;
      });
      inputs.replaceChildren(...(items.length ? items : [h('li', 'await', t('no_inputs'))]));
      draw();
    },

    tick() {
      lags.push(store.inputs.reduce((sum, input) => sum + (input.lag ?? 0), 0));
      if (lags.length > 120) lags.shift();
      draw();
    },
  };
  on.phase(store.program);
  on.inputs(store.inputs);
  for (const view of store.views.values()) on.view(view);
  awaited();
  return on;
}

/** A hint by colour and shape; the text beside it is what counts. */
export function mood(input) {
  if (input.failed !== null && input.failed !== undefined) return 'bad';
  if (/connecting|retry|again|wait|behind/i.test(input.state)) return 'warn';
  if (/fail|error|lost|refused|denied/i.test(input.state)) return 'bad';
  return input.state ? 'good' : '';
}
