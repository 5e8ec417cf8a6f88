// A batch run again: what it read, gave and changed, and what of that differs from what it gave then.

import { tell } from '../frame/ask.js';
import { button, count, h, span, table } from '../frame/dom.js';
import { difference, sample } from '../frame/sample.js';
import { t } from '../frame/strings.js';
import { work } from './detail.js';

export class Again {
  /** `done` is given the answer of a run, for what else shows it. */
  constructor(done) {
    this.done = done;
    this.batch = null;
    this.turn = 0;
    this.element = h('section', 'card again');
    this.element.hidden = true;
    const head = h('div', 'view-head');
    head.append(h('h2', '', t('again')));
    this.start = button(t('run_again'), () => this.run());
    head.append(this.start);
    this.note = h('p', 'small quiet', t('again_means'));
    this.said = h('p', 'verdict');
    this.said.setAttribute('role', 'status');
    this.place = h('div', 'stack');
    this.element.append(head, this.note, this.said, this.place);
  }

  /** Offers to run another batch. */
  of(batch) {
    this.turn++;
    this.batch = batch;
    this.element.hidden = !batch;
    this.idle('');
    this.place.replaceChildren();
  }

  close() {
    this.turn++;
  }

  idle(said, className = '') {
    this.start.disabled = false;
    this.element.removeAttribute('aria-busy');
    this.said.textContent = said;
    this.said.className = `verdict ${className}`;
  }

  async run() {
    const turn = ++this.turn;
    this.start.disabled = true;
    this.element.setAttribute('aria-busy', 'true');
    this.said.textContent = t('running_again');
    this.said.className = 'verdict quiet';
    this.place.replaceChildren();
    let told;
    try {
      const path = `/api/v1/batches/${encodeURIComponent(this.batch)}/run`;
      const answer = await tell(path, {});
      told = await answer.json();
      if (turn !== this.turn) return;
      if (!answer.ok) return this.idle(told.error, 'warn');
    } catch (error) {
      if (turn === this.turn) this.idle(String(error), 'warn');
      return;
    }
    this.show(told);
    this.done(told);
  }

  show(told) {
    const differ = told.outputs.some((output) => output.same === false) || told.states.some(changed);
    const known = told.outputs.filter((output) => output.same !== null).length;
    const all = told.outputs.length;
    const verdict = differ ? t('differs') : known === all ? t('same_all') : t('same_some', known, all);
    this.idle(`${differ ? '≠' : '='} ${verdict} ${t(`by_${told.program}`)} ${t('took_again', span(told.took_us))}`, differ ? 'differs' : 'same');
    const part = (key, ...made) => {
      const box = h('div', `part ${key}`);
      box.append(h('h3', '', t(key)), ...made);
      return box;
    };
    const parts = [part('compare', counts(told), ...told.outputs.map(compared))];
    parts.push(part('samples_in', ...named(told.inputs)));
    parts.push(part('samples_out', ...named(told.outputs.map((output) => output.now))));
    if (told.states.length) parts.push(part('states', ...told.states.map(state)));
    if (told.operators.length) parts.push(part('operators', work(told.operators)));
    if (told.letters.length) parts.push(part('letters', letters(told.letters)));
    this.place.replaceChildren(...parts);
  }
}

const changed = (state) => state.compared && state.removed.total + state.added.total > 0;

function title(text, ...more) {
  const made = h('h4', '', text);
  made.dir = 'auto';
  made.append(...more);
  return made;
}

/** Samples under their names. */
const named = (samples) => samples.flatMap((each) => [title(each.name), sample(each, true)]);

/** Records then and now, where they were counted. */
function counts(told) {
  if (told.records_then === null) return h('p', 'small quiet', t('no_report'));
  const read = told.inputs.reduce((sum, input) => sum + input.total, 0);
  const line = (key, then, now) => {
    const mark = h('b', then === now ? '' : 'differs', then === now ? '=' : '≠');
    return [t(key), count(then), count(now), mark];
  };
  const rows = [line('records', told.records_then, read), line('refused', told.refused_then, told.refused)];
  return table(['', t('then'), t('now'), ''], rows, [1, 2]);
}

/** An output of then beside that of now. */
function compared(output) {
  const box = h('div', 'compared');
  const mark = output.same === null ? '?' : output.same ? '=' : '≠';
  const sign = h('b', `sign ${output.same === false ? 'differs' : ''}`, mark);
  const source = h('span', 'small quiet', ` ${t(`kept_${output.kept}`)}`);
  const said = () => {
    const { removed, added, common } = output;
    if (output.same === true) return t('same_rows', count(output.now.total));
    if (removed.total + added.total > 0) return t('rows_differ', count(removed.total), count(added.total), count(common));
    if (output.counted === null) return t('then_unknown');
    return t(output.counted === output.now.total ? 'same_count' : 'other_count', count(output.counted), count(output.now.total));
  };
  box.append(title(`${output.name} `, sign, source), h('p', '', said()));
  if (output.why) {
    const why = h('p', 'small warn', output.why);
    why.dir = 'auto';
    box.append(why);
  }
  if (output.removed.total + output.added.total > 0) box.append(difference(output.removed, output.added));
  return box;
}

/** What the batch changes in a state. */
function state(of) {
  const box = h('div', 'compared');
  const mark = !of.compared ? '?' : changed(of) ? '≠' : '=';
  box.append(title(`${of.operator} `, h('b', `sign ${changed(of) ? 'differs' : ''}`, mark)));
  if (of.note) {
    const note = h('p', 'small warn', of.note);
    note.dir = 'auto';
    box.append(note);
  }
  box.append(h('p', 'small', t(!of.compared ? 'state_unknown' : changed(of) ? 'state_differs' : 'state_same')));
  if (changed(of)) box.append(difference(of.removed, of.added));
  const pair = h('div', 'pair');
  for (const [key, rows] of [['before', of.before], ['after', of.after]]) {
    const side = h('div');
    side.append(h('p', 'small quiet', t(key)), sample(rows));
    pair.append(side);
  }
  box.append(pair);
  return box;
}

function letters(list) {
  const rows = list.map((letter) => [`${letter.stream} ${letter.partition}`, count(letter.offset), letter.reason, h('code', '', letter.raw)]);
  return table(['stream', 'offset', 'reason', 'raw'].map((key) => t(key)), rows, [1]);
}
