// A field for text that grows with it, marks the place of an error, and offers names.
//
// Under the field lies the same text, seen by nobody: it gives the height, the
// place of the caret, and carries the mark.

import { h, say } from '../frame/dom.js';
import { t } from '../frame/strings.js';
import { complete } from './complete.js';

let made = 0;

export class Editor {
  /** `on.change()`, `on.run()`; `names()` gives what can be named, or is left out. */
  constructor(label, text, on, names) {
    this.on = on;
    this.names = names;
    this.id = `editor-${++made}`;
    this.element = h('div', 'editor');
    this.under = h('pre', 'under');
    this.under.setAttribute('aria-hidden', 'true');
    this.field = h('textarea');
    this.field.spellcheck = false;
    this.field.autocapitalize = 'off';
    this.field.setAttribute('aria-label', label);
    this.field.value = text;
    this.list = h('ul', 'names');
    this.list.id = `${this.id}-names`;
    this.list.setAttribute('role', 'listbox');
    this.list.setAttribute('aria-label', t('names'));
    this.list.hidden = true;
    this.error = h('p', 'wrong');
    this.error.id = `${this.id}-error`;
    this.error.setAttribute('role', 'alert');
    this.error.dir = 'auto';
    this.error.hidden = true;
    const box = h('div', 'box');
    box.append(this.under, this.field, this.list);
    this.element.append(box, this.error);
    if (names) {
      this.field.setAttribute('role', 'combobox');
      this.field.setAttribute('aria-multiline', 'true');
      this.field.setAttribute('aria-autocomplete', 'list');
      this.field.setAttribute('aria-controls', this.list.id);
      this.field.setAttribute('aria-expanded', 'false');
    }
    this.mark = null;
    this.options = [];
    this.at = 0;
    this.field.addEventListener('input', () => {
      this.mark = null;
      this.draw();
      if (names) this.offer(false);
      on.change();
    });
    this.field.addEventListener('keydown', (event) => this.key(event));
    this.field.addEventListener('blur', () => this.close());
    this.draw();
  }

  get text() {
    return this.field.value;
  }

  /** Draws the text beneath, with its mark. */
  draw() {
    const { text } = this;
    if (!this.mark) this.under.replaceChildren(`${text}\n`);
    else {
      const [from, to] = this.mark;
      this.under.replaceChildren(text.slice(0, from), h('mark', '', text.slice(from, to) || ' '), `${text.slice(to)}\n`);
    }
  }

  /** Tells an error at its place, from 1, if it has one; `null` takes it away. */
  wrong(text, line = null, column = null) {
    this.mark = text !== null && line ? this.word(line, column) : null;
    this.draw();
    this.error.hidden = text === null;
    say(this.error, text === null ? '' : line ? t('at_place', line, column) + text : text);
    if (text === null) this.field.removeAttribute('aria-invalid');
    else this.field.setAttribute('aria-invalid', 'true');
    if (text === null) this.field.removeAttribute('aria-describedby');
    else this.field.setAttribute('aria-describedby', this.error.id);
  }

  /** The word that begins at a place: [from, to]. */
  word(line, column) {
    const { text } = this;
    const lines = text.split('\n');
    const row = Math.min(line, lines.length) - 1;
    const start = lines.slice(0, row).reduce((sum, each) => sum + each.length + 1, 0);
    // The server counts characters, and JavaScript halves of some.
    const within = [...lines[row]].slice(0, column - 1).join('').length;
    const from = Math.max(0, Math.min(start + within, text.trimEnd().length - 1));
    const [found] = /^(?:[\p{L}\p{N}_.]+|"[^"\n]*"|'[^'\n]*'|\{\{[^}\n]*\}\}|.|)/u.exec(text.slice(from));
    return [from, from + Math.max(1, found.length)];
  }

  key(event) {
    const open = !this.list.hidden;
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey || event.shiftKey)) {
      event.preventDefault();
      this.close();
      return this.on.run();
    }
    if (event.key === ' ' && event.ctrlKey && this.names) {
      event.preventDefault();
      return this.offer(true);
    }
    if (!open || event.isComposing) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      this.at = (this.at + step + this.options.length) % this.options.length;
      this.choose();
    } else if (event.key === 'Enter' || event.key === 'Tab') this.take(this.at);
    else if (event.key === 'Escape') this.close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Shows the names that fit before the caret; `asked` also where no word was begun. */
  offer(asked) {
    const caret = this.field.selectionStart;
    const { from, options } = complete(this.text, caret, this.names(), asked);
    if (!options.length) return this.close();
    [this.from, this.options, this.at] = [from, options, 0];
    this.list.replaceChildren(
      ...options.map(({ text, kind }, i) => {
        const item = h('li');
        item.id = `${this.list.id}-${i}`;
        item.setAttribute('role', 'option');
        item.append(h('span', 'cut', text), h('span', 'quiet', t(`kind_${kind}`)));
        // Before the field would lose the focus.
        item.addEventListener('mousedown', (event) => {
          event.preventDefault();
          this.take(i);
        });
        return item;
      }),
    );
    const place = this.place(from);
    this.list.style.left = `${Math.max(0, place.left)}px`;
    this.list.style.top = `${place.top}px`;
    this.list.hidden = false;
    this.field.setAttribute('aria-expanded', 'true');
    this.choose();
  }

  choose() {
    [...this.list.children].forEach((item, i) => item.setAttribute('aria-selected', String(i === this.at)));
    const chosen = this.list.children[this.at];
    this.field.setAttribute('aria-activedescendant', chosen.id);
    chosen.scrollIntoView({ block: 'nearest' });
  }

  /** Where a place of the text is drawn, within the box: the point below it. */
  place(index) {
    const node = this.under.firstChild;
    const range = document.createRange();
    if (node?.nodeType === Node.TEXT_NODE) range.setStart(node, Math.min(index, node.length - 1));
    else range.selectNodeContents(this.under);
    const [at, box] = [range.getBoundingClientRect(), this.under.parentElement.getBoundingClientRect()];
    return { left: Math.min(at.left - box.left, box.width - 220), top: at.bottom - box.top + 2 };
  }

  take(i) {
    this.field.setRangeText(this.options[i].text, this.from, this.field.selectionStart, 'end');
    this.mark = null;
    this.draw();
    this.close();
    this.on.change();
  }

  close() {
    this.list.hidden = true;
    this.options = [];
    if (this.names) this.field.setAttribute('aria-expanded', 'false');
    this.field.removeAttribute('aria-activedescendant');
  }
}
