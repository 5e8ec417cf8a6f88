// Batches: a timeline and a histogram in which slow ones stand out, a list, and one batch in detail.

import { ask } from '../frame/ask.js';
import { button, bytes, calm, clock, count, h, instant, say, span, table } from '../frame/dom.js';
import { t } from '../frame/strings.js';
import { Histogram, Timeline } from './charts.js';

/** Rows of the list. */
const LIST = 40;
const letters = (report) => Object.values(report.letters).reduce((sum, n) => sum + n, 0);

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
  root.append(card('timeline', timeline.element, note), halves);

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
    if (!chosen) return detail.replaceChildren(h('p', 'await', t('choose')));
    let answer;
    try {
      answer = await ask(`/api/v1/batches/${encodeURIComponent(chosen)}`);
    } catch {
      return;
    }
    const report = answer.ok ? await answer.json() : null;
    if (turn !== asked) return;
    if (!report) return detail.replaceChildren(h('p', 'await', t('forgotten', chosen)));
    detail.replaceChildren(...drawn(report, () => go('batches')));
  }

  show(rest());
  return { batch: calm(draw, 250), turns: show };
}

/** A batch in detail, as elements. */
function drawn(report, close) {
  const head = h('div', 'view-head');
  head.append(h('h2', '', `${t('batch')} ${report.batch}`), h('span', '', instant(report.time)), button('×', close, 'plain small'));
  head.lastChild.setAttribute('aria-label', t('close'));
  const facts = h('dl', 'facts');
  const fact = (key, value) => facts.append(h('dt', '', t(key)), h('dd', '', value));
  fact('took', span(report.processing_us));
  fact('waited', span(report.scheduling_delay_us));
  fact('records', count(report.records_in));
  fact('rows_out', count(report.rows_out));
  fact('refused', count(report.refused));
  fact('late', count(report.late));
  fact('state', bytes(report.state_bytes));
  const parts = [head, facts];
  const part = (key, made) => parts.push(h('h3', '', t(key)), made);
  const { detail } = report;
  if (detail.operators.length) part('operators', work(detail.operators));
  if (detail.outputs.length) part('outputs', work(detail.outputs));
  const ranges = Object.entries(detail.ranges).flatMap(([stream, of]) =>
    of.map((range) => [stream, range.partition, count(range.start), count(range.end), count(range.end - range.start)]),
  );
  if (ranges.length) part('ranges', table(['stream', 'partition', 'from', 'to', 'records'].map((key) => t(key)), ranges, [2, 3, 4]));
  const marks = Object.entries(detail.watermarks).filter(([, at]) => Math.abs(at) < 8e15);
  if (marks.length) part('watermarks', table([t('operator'), t('watermark')], marks.map(([name, at]) => [name, instant(at)])));
  part('letters', dead(report));
  return parts;
}

/** Operators with rows, and with time as bars. */
function work(operators) {
  const most = Math.max(...operators.map((operator) => operator.busy_us), 1);
  const rows = operators.flatMap((operator) => {
    const steps = operator.steps?.length > 1 ? operator.steps : [];
    const line = (told, className) => {
      const time = h('span', 'busy');
      const bar = h('i', 'fill');
      bar.style.width = `${(100 * told.busy_us) / most}%`;
      time.append(bar, h('span', '', span(told.busy_us)));
      return [h('span', className, told.name), count(told.rows), time];
    };
    return [line(operator, 'strong'), ...steps.map((step) => line(step, 'step'))];
  });
  return table([t('operator'), t('rows'), t('busy')], rows, [1]);
}

function dead(report) {
  const shown = report.detail.letters;
  if (!shown.length) return h('p', 'quiet', t('no_letters'));
  const box = h('div', 'scroll');
  const rows = shown.map((letter) => [`${letter.stream} ${letter.partition}`, count(letter.offset), letter.reason, h('code', '', letter.raw)]);
  box.append(table(['stream', 'offset', 'reason', 'raw'].map((key) => t(key)), rows, [1]));
  if (letters(report) > shown.length) box.append(h('p', 'small quiet', t('more_letters', shown.length, letters(report))));
  return box;
}
