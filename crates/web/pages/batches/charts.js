// Batches as bars over time, and how long they took as a histogram.

import { h, say, span } from '../frame/dom.js';
import { t } from '../frame/strings.js';

const SVG = 'http://www.w3.org/2000/svg';
/** Bars of the timeline: as many as the page knows reports. */
const BARS = 600;
const HEIGHT = 100;

function svg(tag, className, parent) {
  const made = document.createElementNS(SVG, tag);
  made.setAttribute('class', className);
  parent?.append(made);
  return made;
}

/** A bar a batch, of the time that it waited and the time that it took. One path a colour, however many there are. */
export class Timeline {
  constructor(choose) {
    this.element = h('div', 'timeline');
    this.element.tabIndex = 0;
    this.element.setAttribute('role', 'slider');
    this.element.setAttribute('aria-label', t('timeline'));
    this.svg = svg('svg', 'columns', this.element);
    this.svg.setAttribute('viewBox', `0 0 ${BARS} ${HEIGHT}`);
    this.svg.setAttribute('preserveAspectRatio', 'none');
    this.paths = Object.fromEntries(['waited', 'took', 'slow', 'dead', 'chosen'].map((name) => [name, svg('path', name, this.svg)]));
    this.said = h('p', 'small quiet said');
    this.element.append(this.said);
    this.reports = [];
    this.at = -1;
    this.element.addEventListener('pointermove', (event) => this.point(this.under(event)));
    this.element.addEventListener('pointerleave', () => this.point(-1));
    this.element.addEventListener('click', (event) => {
      const report = this.reports[this.under(event)];
      if (report) choose(report);
    });
    this.element.addEventListener('keydown', (event) => {
      const last = this.reports.length - 1;
      const next = { ArrowLeft: this.at - 1, ArrowRight: this.at + 1, Home: 0, End: last }[event.key];
      if (next !== undefined) {
        event.preventDefault();
        this.point(Math.min(last, Math.max(0, this.at < 0 && event.key === 'ArrowLeft' ? last : next)));
      }
      if (event.key === 'Enter' && this.reports[this.at]) choose(this.reports[this.at]);
    });
  }

  /** The place of the batch under the pointer. */
  under(event) {
    const { left, width } = this.svg.getBoundingClientRect();
    const bar = Math.floor(((event.clientX - left) / width) * BARS) - (BARS - this.wide());
    return Math.floor(bar / this.step);
  }

  /** Bars that are filled, of few batches wider ones. */
  wide() {
    return this.reports.length * this.step;
  }

  point(at) {
    this.at = this.reports[at] ? at : -1;
    const report = this.reports[this.at];
    const shown = report ? `${t('batch')} ${report.batch} · ${span(report.processing_us)} + ${span(report.scheduling_delay_us)}` : '';
    say(this.said, shown);
    this.element.setAttribute('aria-valuetext', shown);
    this.element.setAttribute('aria-valuenow', report?.batch ?? 0);
  }

  draw(reports, slow, chosen) {
    const batch = this.reports[this.at]?.batch;
    this.reports = reports;
    this.step = Math.max(1, Math.min(12, Math.floor(BARS / Math.max(1, reports.length))));
    const left = BARS - this.wide();
    // By the square root: slow ones stand out and fast ones can still be seen.
    const most = Math.sqrt(Math.max(...reports.map((report) => report.processing_us + report.scheduling_delay_us), 1));
    const high = (us) => (Math.sqrt(us) / most) * (HEIGHT - 8);
    const drawn = { waited: '', took: '', slow: '', dead: '', chosen: '' };
    const width = this.step > 2 ? this.step - 0.8 : this.step;
    reports.forEach((report, i) => {
      const x = left + i * this.step;
      const took = high(report.processing_us);
      const all = high(report.processing_us + report.scheduling_delay_us);
      const bar = (bottom, top) => `M${x},${(HEIGHT - bottom).toFixed(1)}h${width}V${(HEIGHT - top).toFixed(1)}h-${width}Z`;
      drawn[report.processing_us > slow ? 'slow' : 'took'] += bar(0, took);
      drawn.waited += bar(took, all);
      if (Object.keys(report.letters).length) drawn.dead += `M${x},0h${width}v4h-${width}Z`;
      if (String(report.batch) === chosen) drawn.chosen += `M${x},0h${width}V${HEIGHT}h-${width}Z`;
    });
    for (const [name, path] of Object.entries(this.paths)) path.setAttribute('d', drawn[name]);
    if (batch !== undefined) this.point(reports.findIndex((report) => report.batch === batch));
    this.element.setAttribute('aria-valuemin', reports[0]?.batch ?? 0);
    this.element.setAttribute('aria-valuemax', reports.at(-1)?.batch ?? 0);
  }
}

/** How many batches took how long, in steps that double. */
export class Histogram {
  constructor() {
    this.element = h('ol', 'histogram');
  }

  draw(reports, slow) {
    const step = (us) => Math.max(0, Math.floor(Math.log2(Math.max(1, us))));
    const counts = new Map();
    for (const { processing_us: us } of reports) counts.set(step(us), (counts.get(step(us)) ?? 0) + 1);
    const [first, last] = [Math.min(...counts.keys()), Math.max(...counts.keys())];
    const most = Math.max(...counts.values(), 1);
    const bars = [];
    for (let at = first; at <= last; at++) {
      const bar = h('li', 2 ** at > slow ? 'slow' : '');
      const column = h('i', 'fill');
      const n = counts.get(at) ?? 0;
      column.style.height = `${(100 * n) / most}%`;
      bar.append(h('span', 'n', n ? String(n) : ''), column, h('span', 'of', span(2 ** at)));
      bar.title = `${span(2 ** at)} – ${span(2 ** (at + 1))}: ${n}`;
      bars.push(bar);
    }
    this.element.replaceChildren(...bars);
  }
}
