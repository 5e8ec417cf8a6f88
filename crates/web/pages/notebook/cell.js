// One cell: SQL with its rows, or Markdown as people read it.

import { button, count, h, long, say } from '../frame/dom.js';
import { t } from '../frame/strings.js';
import { Query } from './ask.js';
import { Editor } from './editor.js';
import { markdown } from './markdown.js';
import { Result } from './result.js';

/** Buttons that every cell has. */
function tools(on, element) {
  const made = h('span', 'tools');
  const add = (key, sign, act) => {
    const one = button(sign, act, 'plain small');
    one.setAttribute('aria-label', t(key));
    one.title = t(key);
    one.dataset.tool = key;
    made.append(one);
  };
  add('move_up', '↑', () => on.move(-1));
  add('move_down', '↓', () => on.move(1));
  add('add_sql', '+ SQL', () => on.add('sql'));
  add('add_text', `+ ${t('prose')}`, () => on.add('text'));
  add('remove_cell', '×', () => on.remove());
  element.append(made);
}

/** A cell of SQL. `book.question(text)` gives what is asked, `book.names()` what can be named. */
export class SqlCell {
  constructor(cell, book, app, on) {
    this.cell = cell;
    this.book = book;
    this.query = null;
    this.asked = 0;
    this.element = h('section', 'card cell of-sql');
    this.element.setAttribute('aria-label', t('sql_cell'));
    const bar = this.element.appendChild(h('div', 'bar'));
    this.start = bar.appendChild(button(t('run'), () => this.run()));
    this.start.dataset.tool = 'run';
    this.stop = bar.appendChild(button(t('cancel'), () => this.cancel()));
    this.stop.dataset.tool = 'cancel';
    this.stop.hidden = true;
    const live = bar.appendChild(h('label', 'check'));
    this.live = live.appendChild(h('input'));
    this.live.type = 'checkbox';
    this.live.checked = Boolean(cell.live);
    live.append(t('is_live'));
    this.live.addEventListener('change', () => {
      cell.live = this.live.checked;
      on.change();
      if (cell.live) this.run();
    });
    this.said = bar.appendChild(h('span', 'quiet said small'));
    this.said.setAttribute('role', 'status');
    tools(on, bar);
    const change = () => {
      cell.text = this.editor.text;
      on.change();
    };
    this.editor = new Editor(t('sql_cell'), cell.text, { change, run: () => this.run() }, () => book.names());
    this.result = new Result(cell, app, on);
    this.element.append(this.editor.element, this.result.element);
    this.fixed();
  }

  /** Whether it can be live: not at a batch of the past. */
  fixed() {
    this.live.disabled = this.book.at() !== null;
  }

  /** Asks; `again` is after a batch, by itself. */
  async run(again = false) {
    if (!this.cell.text.trim()) return;
    if (this.query) {
      if (again) return;
      await this.cancel();
    }
    const turn = ++this.asked;
    const began = performance.now();
    const query = new Query(this.book.question(this.cell.text), ({ read, elapsed_ms }) => {
      if (turn === this.asked) say(this.said, t('progress', count(read), long(elapsed_ms / 1000)));
    });
    this.query = query;
    this.stop.hidden = false;
    this.element.setAttribute('aria-busy', 'true');
    if (!again) say(this.said, t('asking'));
    const { ok, status, body } = await query.answer;
    if (turn !== this.asked) return;
    this.query = null;
    this.stop.hidden = true;
    this.element.removeAttribute('aria-busy');
    if (ok) {
      this.editor.wrong(null);
      this.result.take(body, again);
      const seconds = ((performance.now() - began) / 1000).toFixed(2);
      return say(this.said, t('answered', count(body.rows.length), count(body.read), seconds, count(body.batch)));
    }
    // One that comes by itself and finds no room waits for the next batch.
    if (again && (status === 429 || status === 0)) return;
    say(this.said, status === 409 ? t('was_stopped') : t('failed'));
    if (status === 409) return this.editor.wrong(null);
    this.editor.wrong(body.error ?? t('unreached'), body.line, body.column);
    if (again) {
      // An error each second helps nobody.
      this.live.checked = this.cell.live = false;
    }
    this.result.clear();
  }

  async cancel() {
    const { query } = this;
    if (!query) return;
    await query.cancel();
    await query.answer;
  }

  colours() {
    this.result.draw();
  }

  close() {
    this.asked++;
    this.query?.cancel();
    this.result.close();
  }
}

/** A cell of Markdown, which is shown until it is edited. */
export class TextCell {
  constructor(cell, book, app, on) {
    this.cell = cell;
    this.element = h('section', 'card cell of-text');
    this.element.setAttribute('aria-label', t('text_cell'));
    const bar = this.element.appendChild(h('div', 'bar'));
    this.edit = bar.appendChild(button(t('edit'), () => this.show(!this.editing)));
    this.edit.dataset.tool = 'edit';
    tools(on, bar);
    const change = () => {
      cell.text = this.editor.text;
      on.change();
    };
    this.editor = new Editor(t('text_cell'), cell.text, { change, run: () => this.show(false) });
    this.shown = h('div', 'prose');
    this.shown.dir = 'auto';
    this.shown.addEventListener('dblclick', () => this.show(true));
    this.element.append(this.editor.element, this.shown);
    this.show(!cell.text.trim());
  }

  show(editing) {
    this.editing = editing;
    this.editor.element.hidden = !editing;
    this.shown.hidden = editing;
    say(this.edit, t(editing ? 'done' : 'edit'));
    if (editing) this.editor.draw();
    else this.shown.replaceChildren(...markdown(this.cell.text));
  }

  run() {
    this.show(false);
  }

  fixed() {}

  colours() {}

  close() {}
}
