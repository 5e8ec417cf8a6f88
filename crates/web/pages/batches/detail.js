// One batch in detail: facts, operators with rows and time, ranges, watermarks, dead letters.

import { button, bytes, count, h, instant, span, table } from '../frame/dom.js';
import { t } from '../frame/strings.js';

/** All dead letters of a batch. */
export const letters = (report) => Object.values(report.letters).reduce((sum, n) => sum + n, 0);

/** A batch in detail, as elements. */
export function drawn(report, close) {
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
export function work(operators) {
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
