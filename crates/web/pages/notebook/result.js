// The rows of an answer as a table or in any form that the live charts have.

import { button, h, say } from '../frame/dom.js';
import { t } from '../frame/strings.js';
import { FORMS, lacks, parts, sensible } from '../live/forms.js';
import { Big } from '../live/page.js';
import { file, Plot } from '../live/plot.js';
import { csv, save } from '../live/save.js';
import { Bars, Table } from '../overview/view.js';

/** What is kept of the answers before: so many, and so many cells. */
const STEPS = 240;
const CELLS = 100_000;
/** Forms of the chart library. */
const PLOTS = ['lines', 'heat', 'map', 'cloud'];

export class Result {
  /** `cell` holds what was chosen: form, and the names of the columns `label` and `number`; `on.change()` tells of a choice. */
  constructor(cell, app, on) {
    this.cell = cell;
    this.app = app;
    this.on = on;
    this.steps = [];
    this.element = h('div', 'result');
    this.element.hidden = true;
    const bar = this.element.appendChild(h('div', 'toolbar'));
    this.forms = this.select(bar, 'form');
    this.texts = this.select(bar, 'label', 'columns');
    this.numbers = this.select(bar, 'number');
    const saves = bar.appendChild(h('span', 'group'));
    saves.append(h('span', 'quiet', t('export')));
    for (const kind of ['png', 'csv']) {
      const made = button(kind.toUpperCase(), () => this.store(kind));
      made.dataset.kind = kind;
      saves.append(made);
      this[kind] = made;
    }
    this.body = this.element.appendChild(h('div', 'picture'));
    this.body.tabIndex = 0;
    this.body.setAttribute('role', 'region');
    this.note = this.element.appendChild(h('p', 'more'));
    this.picture = null;
    this.plot = null;
  }

  select(bar, key, title = key) {
    const label = h('label', 'field');
    const made = h('select');
    made.dataset.pick = key;
    made.addEventListener('change', () => {
      this.cell[key] = made.value;
      this.on.change();
      this.draw();
    });
    label.append(h('span', 'quiet', t(title)), made);
    made.field = bar.appendChild(label);
    return made;
  }

  /** Takes an answer: a further one of the same columns if `again`, else the first. */
  take(answer, again) {
    const view = { ...answer, name: t('query'), total: answer.rows.length };
    const last = this.steps.at(-1)?.view;
    const same = last && JSON.stringify(last.columns) === JSON.stringify(view.columns);
    if (!again || !same) this.steps = [];
    if (last && again && last.batch === view.batch) this.steps.pop();
    this.steps.push({ view });
    let cells = this.steps.reduce((sum, step) => sum + step.view.rows.length * step.view.columns.length, 0);
    while (this.steps.length > 1 && (this.steps.length > STEPS || cells > CELLS)) {
      const { view: gone } = this.steps.shift();
      cells -= gone.rows.length * gone.columns.length;
    }
    this.draw();
  }

  /** Takes the rows away. */
  clear() {
    this.steps = [];
    this.element.hidden = true;
  }

  picks(view) {
    const found = parts(view);
    const among = (name, list) => list.find((i) => view.columns[i].name === name) ?? list[0] ?? null;
    const text = among(this.cell.label, found.texts);
    return {
      form: FORMS.includes(this.cell.form) ? this.cell.form : sensible(view),
      text,
      second: found.texts.find((i) => i !== text) ?? null,
      number: among(this.cell.number, found.numbers),
      time: found.moving[0] ?? null,
      place: found.place,
      found,
    };
  }

  draw() {
    const view = this.steps.at(-1)?.view;
    this.element.hidden = !view;
    if (!view) return;
    const picked = this.picks(view);
    const { form, found } = picked;
    const names = (list) => list.map((i) => [view.columns[i].name, view.columns[i].name]);
    fill(this.forms, FORMS.map((each) => [each, t(each)]), form);
    fill(this.texts, names(found.texts), view.columns[picked.text]?.name ?? '');
    fill(this.numbers, names(found.numbers), view.columns[picked.number]?.name ?? '');
    this.texts.field.hidden = form === 'table' || found.texts.length < 2;
    this.numbers.field.hidden = form === 'table' || found.numbers.length < 2;
    this.body.setAttribute('aria-label', t(form));
    const told = [];
    if (view.more) told.push(t('more_rows', view.rows.length));
    if (view.cut) told.push(t('cut', view.cut));
    const missing = view.rows.length ? lacks(form, view) : null;
    this.png.disabled = form === 'table' || missing !== null || !view.rows.length;
    this.body.classList.toggle('low', !PLOTS.includes(form) || missing !== null || !view.rows.length);
    const words = !view.rows.length ? t('empty_answer') : missing ? t('does_not_fit', t(missing)) : null;
    if (words) {
      this.picture = null;
      this.body.replaceChildren(h('p', 'await', words));
    } else if (PLOTS.includes(form)) this.chart(form, picked);
    else {
      const shown = this.paint(form, view, picked);
      if (shown !== undefined && shown < view.rows.length) told.unshift(t('first_rows', shown, view.rows.length));
    }
    say(this.note, told.join(' '));
  }

  paint(form, view, picked) {
    this.plot?.close();
    this.plot = null;
    const kind = form === 'bars' ? Bars : form === 'number' ? Big : Table;
    if (!(this.picture instanceof kind)) {
      this.picture = new kind();
      this.body.replaceChildren(this.picture.element);
    }
    return this.picture.draw(view, picked);
  }

  async chart(form, picked) {
    this.picture = null;
    if (!this.plot || !this.body.contains(this.plot.element)) {
      this.plot?.close();
      this.plot = new Plot();
      this.body.replaceChildren(this.plot.element);
    }
    const mine = this.plot;
    mine.element.setAttribute('aria-label', t(form));
    try {
      await mine.draw(form, this.steps, picked, this.app.colours());
    } catch (error) {
      if (mine === this.plot) this.body.replaceChildren(h('p', 'await', t('no_chart', String(error))));
    }
  }

  async store(kind) {
    const { view } = this.steps.at(-1);
    const picked = this.picks(view);
    save(kind === 'csv' ? csv(view) : await file(kind, picked.form, this.steps, picked, this.app.colours()), view, kind);
  }

  close() {
    this.plot?.close();
    this.plot = null;
  }
}

/** Fills a list of choices, and keeps its elements while nothing changed: an open list stays open. */
function fill(list, choices, value) {
  const key = JSON.stringify([choices, value]);
  if (list.filled === key) return;
  list.filled = key;
  list.replaceChildren(
    ...choices.map(([of, text]) => {
      const made = h('option', '', text);
      made.value = of;
      return made;
    }),
  );
  list.value = value;
}
