// Streams: each source and receiver with its rate, errors, and partitions with what is not read yet.

import { bytes, count, h, instant, long, rate, say, table } from '../frame/dom.js';
import { t } from '../frame/strings.js';
import { mood } from '../overview/page.js';
import { Spark } from '../frame/chart.js';

const POINTS = 120;

export function open(root, { store }) {
  const cards = new Map();
  const none = root.appendChild(h('p', 'await', t('no_inputs')));
  const box = root.appendChild(h('div', 'streams'));

  function draw() {
    const { inputs, rates } = store;
    none.hidden = inputs.length > 0;
    const keep = new Set(inputs.map(key));
    for (const [name, card] of cards) {
      if (keep.has(name)) continue;
      card.element.remove();
      cards.delete(name);
    }
    inputs.forEach((input, i) => {
      let card = cards.get(key(input));
      if (!card) {
        cards.set(key(input), (card = new Input(input)));
        box.append(card.element);
      }
      card.draw(input, rates[i], store.now());
    });
  }

  draw();
  return { inputs: draw, tick: draw };
}

const key = (input) => `${input.index} ${input.stream}`;

class Input {
  constructor(input) {
    this.element = h('section', 'card');
    const head = h('div', 'view-head');
    this.dot = head.appendChild(h('span', 'dot'));
    const name = head.appendChild(h('h2', 'cut'));
    name.dir = 'auto';
    say(name, `${input.stream} #${input.index}`, true);
    this.what = this.element.appendChild(head).appendChild(h('span', 'cut'));
    this.what.dir = 'auto';
    this.state = this.element.appendChild(h('p', 'state'));
    this.state.dir = 'auto';
    this.spark = new Spark(t('per_second'));
    this.facts = h('dl', 'facts');
    this.values = Object.fromEntries(
      ['per_second', 'records', 'bytes', 'last', 'lag', 'errors', 'reconnects'].map((name) => {
        const value = h('dd');
        this.facts.append(h('dt', '', t(name)), value);
        return [name, value];
      }),
    );
    this.error = h('p', 'small warn');
    this.error.dir = 'auto';
    this.parts = h('div', 'scroll low');
    this.element.append(this.facts, this.spark.svg, this.error, this.parts);
    this.points = [];
  }

  draw(input, now, time) {
    this.dot.className = `dot ${mood(input)}`;
    say(this.what, input.describe, true);
    say(this.state, input.failed ?? (input.state || t('no_word')));
    this.state.classList.toggle('bad', input.failed !== null);
    const { values } = this;
    say(values.per_second, now === null || now === undefined ? '–' : rate(now));
    say(values.records, count(input.records));
    say(values.bytes, input.bytes ? bytes(input.bytes) : '–');
    say(values.last, input.last ? t('ago', long((time - input.last) / 1e6)) : t('never'));
    values.last.title = input.last ? instant(input.last) : '';
    say(values.lag, input.lag === null ? t('unknown') : count(input.lag));
    say(values.errors, count(input.errors));
    values.errors.className = input.errors ? 'warn' : '';
    say(values.reconnects, count(input.reconnects));
    say(this.error, input.last_error ? `${t('last_error')}: ${input.last_error}` : '');
    if (input !== this.drawn && now !== null && now !== undefined) {
      this.points.push(now);
      if (this.points.length > POINTS) this.points.shift();
      this.spark.draw(this.points);
    }
    if (input === this.drawn) return;
    this.drawn = input;
    const rows = input.partitions.map((part) => [part.partition, count(part.position), part.lag === null ? t('unknown') : count(part.lag)]);
    this.parts.replaceChildren(...(rows.length ? [table([t('partition'), t('position'), t('lag')], rows, [1, 2])] : []));
  }
}
