// Batches: a timeline and a histogram in which slow ones stand out, a list, and one batch in detail.

import { ask } from '../frame/ask.js';
import { calm, clock, count, h, say, span, table } from '../frame/dom.js';
import { t } from '../frame/strings.js';
import { Again } from './again.js';
import { Histogram, Timeline } from './charts.js';
import { drawn, letters } from './detail.js';
import { Plan } from './plan.js';

/** Rows of the list. */
const LIST = 40;

/** The time over which a batch is slow: three times the median, and never less than a millisecond. */
export function slowAfter(reports) {
  const sorted = reports.map((report) => report.processing_us).sort((a, b) => a - b);
  return Math.max(1000, 3 * (sorted[sorted.length >> 1] ?? 0));
}

export function open(root, { store, go, rest }) {
  const timeline = new Timeline((report) => go('batches', report.batch));
  const histogram = new Histogram();
  const note = h('p', 'small quiet');
  const list = h('div', 'scroll');
  list.tabIndex = 0;
  const detail = h('section', 'card detail');
  detail.setAttribute('aria-live', 'polite');
  const halves = h('div', 'halves');
  const left = h('div', 'stack');
  left.append(card('histogram', histogram.element), card('batches', list));
  halves.append(left, detail);
  const plan = new Plan((node) => go('lineage', node.id));
  const again = new Again((rerun) => plan.add(rerun));
  root.append(card('timeline', timeline.element, note), halves, plan.element, again.element);

  let chosen = null;
  let asked = 0;

  function card(key, ...parts) {
    const made = h('section', 'card');
    made.append(h('h2', '', t(key)), ...parts);
    return made;
  }

  function draw() {
    const { reports } = store;
    const slow = slowAfter(reports);
    timeline.draw(reports, slow, chosen);
    histogram.draw(reports, slow);
    say(note, reports.length ? t('slow_means', span(slow)) : t('waits'));
    const rows = reports.slice(-LIST).reverse().map((report) => {
      const link = h('a', '', String(report.batch));
      link.href = `#batches/${report.batch}`;
      if (String(report.batch) === chosen) link.setAttribute('aria-current', 'true');
      const took = h('span', report.processing_us > slow ? 'slow' : '', span(report.processing_us));
      if (report.processing_us > slow) took.append(h('b', 'mark', ` ${t('slow')}`));
      const dead = letters(report);
      return [
        link,
        clock(report.time),
        count(report.records_in),
        count(report.rows_out),
        span(report.scheduling_delay_us),
        took,
        h('span', dead ? 'warn' : '', count(dead)),
      ];
    });
    const heads = ['batch', 'time', 'records', 'rows_out', 'waited', 'took', 'letters'].map((key) => t(key));
    // A row that has the focus keeps it.
    const focused = list.contains(document.activeElement) ? document.activeElement.getAttribute('href') : null;
    list.replaceChildren(table(heads, rows, [2, 3, 4, 5, 6]));
    if (focused) list.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  }

  async function show(batch) {
    chosen = batch || null;
    draw();
    const turn = ++asked;
    // What is shown of the batch before must not be taken for this one's.
    again.of(chosen);
    plan.of(null);
    if (!chosen) return detail.replaceChildren(h('p', 'await', t('choose')));
    let answers;
    try {
      answers = await Promise.all([ask(`/api/v1/batches/${encodeURIComponent(chosen)}`), ask('/api/v1/graph')]);
    } catch {
      return;
    }
    const [report, graph] = await Promise.all(answers.map((answer) => (answer.ok ? answer.json() : null)));
    if (turn !== asked) return;
    if (!report) return detail.replaceChildren(h('p', 'await', t('forgotten', chosen)));
    detail.replaceChildren(...drawn(report, () => go('batches')));
    plan.of(report, graph);
  }

  show(rest());
  return { batch: calm(draw, 250), turns: show, close: () => again.close() };
}
