// The notebook: cells of SQL and Markdown, asked beside the program, kept as one file.

import { button, calm, h, say } from '../frame/dom.js';
import { t } from '../frame/strings.js';
import { get, post } from './ask.js';
import { SqlCell, TextCell } from './cell.js';
import { named, parse, write } from './file.js';

/** The text that is being written, for when the page is turned or loaded again. */
const DRAFT = 'tidemill.notebook';
/** Live cells are asked at most so often, in milliseconds. */
const REST = 500;

/** The draft, or null where there is none. */
function recall() {
  try {
    return JSON.parse(sessionStorage.getItem(DRAFT));
  } catch {
    return null;
  }
}

function remember(draft) {
  try {
    sessionStorage.setItem(DRAFT, JSON.stringify(draft));
  } catch {
    // A browser that keeps nothing forgets with the page.
  }
}

export function open(root, app) {
  const style = document.head.appendChild(h('link'));
  style.rel = 'stylesheet';
  style.href = '/assets/notebook/notebook.css';

  const bar = h('div', 'toolbar');
  const note = h('p', 'notice');
  note.setAttribute('role', 'status');
  note.dir = 'auto';
  note.hidden = true;
  const values = h('section', 'card values');
  values.setAttribute('aria-label', t('parameters'));
  const list = h('div', 'cells');
  const below = h('div', 'bar');
  root.append(bar, note, values, list, below);

  /** What is open: its name, and the name and revision under which it was kept; null of one that never was. */
  let book = { name: '', kept: null, revision: null, parameters: Object.create(null), at: null };
  let cells = [];
  let names = { tables: [], functions: [] };
  let closed = false;
  let dirty = false;

  const books = select('notebook', () => {
    if (mayLeave()) load(books.value);
    else books.value = '';
  });
  const title = input('book_name', 'text', () => {
    book.name = title.value;
    changed();
  });
  title.id = 'book-name';
  title.maxLength = 64;
  const at = input('at_batch', 'number', () => {
    book.at = /^\d+$/.test(at.value) && Number(at.value) > 0 ? Number(at.value) : null;
    cells.forEach((cell) => cell.fixed());
    changed();
  });
  at.id = 'at-batch';
  at.min = '1';
  at.placeholder = t('at_now');
  const tool = (key, act) => {
    const made = button(t(key), act);
    made.dataset.tool = key;
    return made;
  };
  const keep = tool('save', () => store());
  const chosen = h('input');
  chosen.type = 'file';
  chosen.accept = '.md,text/markdown';
  chosen.hidden = true;
  chosen.addEventListener('change', async () => {
    const [given] = chosen.files;
    if (!given) return;
    show(given.name.replace(/(\.notebook)?\.md$/, ''), await given.text(), null);
    changed();
    chosen.value = '';
  });
  const group = h('span', 'group');
  group.append(
    tool('run_all', runAll),
    keep,
    tool('download', download),
    tool('open_file', () => mayLeave() && chosen.click()),
    chosen,
    tool('new_book', () => mayLeave() && fresh()),
  );
  bar.append(group);
  below.append(tool('add_sql', () => add('sql', cells.length)), tool('add_text', () => add('text', cells.length)));

  function field(key) {
    const made = h('label', 'field');
    made.append(h('span', 'quiet', t(key)));
    bar.append(made);
    return made;
  }

  function select(key, act) {
    const made = field(key).appendChild(h('select'));
    made.id = 'books';
    made.addEventListener('change', act);
    made.field = made.parentElement;
    made.field.hidden = true;
    return made;
  }

  function input(key, type, act) {
    const made = field(key).appendChild(h('input'));
    made.type = type;
    made.autocomplete = 'off';
    made.addEventListener('input', act);
    return made;
  }

  /** What is asked of the program with a cell's text. */
  const asking = {
    names: () => names,
    at: () => book.at,
    question: (sql) => ({
      sql,
      at_batch: book.at,
      params: Object.fromEntries(named([{ kind: 'sql', text: sql }]).map((name) => [name, book.parameters[name] ?? null])),
    }),
  };

  const text = () => write({ cells: cells.map(({ cell }) => cell), parameters: used(), at: book.at });

  /** The parameters that the cells name, with their values. */
  function used() {
    const found = named(cells.map(({ cell }) => cell));
    return Object.fromEntries(found.map((name) => [name, book.parameters[name] ?? '']));
  }

  const draft = calm(() => remember({ name: book.name, kept: book.kept, revision: book.revision, text: text(), dirty }), 300);

  function changed() {
    dirty = true;
    say(keep, `${t('save')} •`);
    parameters();
    draft();
  }

  /** Whether what was written and not kept may be lost. */
  const mayLeave = () => !dirty || confirm(t('lose'));

  function tell(words, bad = false) {
    note.hidden = !words;
    note.classList.toggle('bad', bad);
    say(note, words);
  }

  /** Shows a notebook's text. */
  function show(name, source, revision) {
    const found = parse(source);
    cells.forEach((cell) => cell.close());
    book = { name, kept: revision === null ? null : name, revision, parameters: found.parameters, at: found.at };
    [title.value, at.value] = [name, found.at ?? ''];
    cells = found.cells.map(made);
    list.replaceChildren(...cells.map(({ element }) => element));
    dirty = false;
    say(keep, t('save'));
    parameters();
    tell('');
  }

  function made(cell) {
    const on = {
      change: changed,
      move: (step) => move(self, step),
      add: (kind) => add(kind, cells.indexOf(self) + 1),
      remove: () => remove(self),
    };
    const self = new (cell.kind === 'sql' ? SqlCell : TextCell)(cell, asking, app, on);
    return self;
  }

  function add(kind, place) {
    const cell = made({ kind, text: '' });
    cells.splice(place, 0, cell);
    list.insertBefore(cell.element, list.children[place] ?? null);
    cell.editor.field.focus();
    changed();
  }

  function move(cell, step) {
    const from = cells.indexOf(cell);
    const to = from + step;
    if (to < 0 || to >= cells.length) return;
    cells.splice(from, 1);
    cells.splice(to, 0, cell);
    const focused = document.activeElement;
    list.insertBefore(cell.element, cells[to + 1]?.element ?? null);
    focused.focus();
    changed();
  }

  function remove(cell) {
    cell.close();
    cell.element.remove();
    cells = cells.filter((each) => each !== cell);
    changed();
  }

  /** A field for each parameter; one that has the focus keeps it. */
  function parameters() {
    const wanted = named(cells.map(({ cell }) => cell));
    values.hidden = !wanted.length;
    const key = JSON.stringify(wanted);
    if (values.filled === key) return;
    values.filled = key;
    values.replaceChildren(...wanted.map(parameter));
  }

  function parameter(name) {
    const label = h('label', 'field');
    const value = h('input');
    value.dataset.parameter = name;
    value.autocomplete = 'off';
    const kind = h('select');
    kind.setAttribute('aria-label', t('kind_of', name));
    for (const of of ['text', 'number', 'truth']) {
      const option = kind.appendChild(h('option', '', t(`kind_${of}`)));
      option.value = of;
    }
    const now = book.parameters[name] ?? '';
    value.value = String(now);
    kind.value = { number: 'number', boolean: 'truth' }[typeof now] ?? 'text';
    const take = () => {
      const given = value.value.trim();
      const read = { text: value.value, number: given === '' || Number.isNaN(Number(given)) ? null : Number(given), truth: given === 'true' };
      book.parameters[name] = read[kind.value];
      changed();
    };
    value.addEventListener('input', take);
    value.addEventListener('keydown', (event) => event.key === 'Enter' && runAll());
    kind.addEventListener('change', take);
    label.append(h('span', 'quiet', name), value);
    const both = h('span', 'pair');
    both.append(label, kind);
    return both;
  }

  /** The cells from the first to the last; those that an error stops stop nobody else. */
  async function runAll() {
    for (const cell of [...cells]) await cell.run();
  }

  async function shelf() {
    const { ok, body } = await get('/api/v1/notebooks');
    if (closed || !ok) return [];
    keep.disabled = !body.kept;
    keep.title = body.kept ? '' : t('no_shelf');
    books.field.hidden = !body.names.length;
    const option = (name) => {
      const one = h('option', '', name || t('choose_book'));
      one.value = name;
      return one;
    };
    books.replaceChildren(...['', ...body.names].map(option));
    books.value = body.names.includes(book.name) ? book.name : '';
    return body.names;
  }

  async function load(name) {
    if (!name) return;
    const { ok, body } = await get(`/api/v1/notebooks/${encodeURIComponent(name)}`);
    if (closed) return;
    if (!ok) return tell(body.error ?? t('unreached'), true);
    show(name, body.text, body.revision);
    draft();
    books.value = name;
    app.go('notebook', name);
  }

  async function store() {
    if (!/^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$/.test(book.name)) {
      title.focus();
      return tell(t('name_rule'), true);
    }
    // Under another name it is a new one.
    const revision = book.kept === book.name ? book.revision : null;
    const { ok, body } = await post(`/api/v1/notebooks/${book.name}`, { text: text(), revision });
    if (closed) return;
    if (!ok) return tell(body.error ?? t('unreached'), true);
    [book.revision, book.kept, dirty] = [body.revision, book.name, false];
    say(keep, t('save'));
    draft();
    tell(t('kept_as', `${book.name}.notebook.md`));
    await shelf();
    books.value = book.name;
  }

  function download() {
    const link = h('a');
    link.href = URL.createObjectURL(new Blob([text()], { type: 'text/markdown' }));
    link.download = `${book.name.replace(/[^\w.-]+/g, '_').replace(/^\.+/, '') || 'notebook'}.notebook.md`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  function fresh() {
    const first = names.tables.find(({ kind }) => kind === 'view') ?? names.tables[0];
    const sql = first ? `SELECT * FROM ${first.name} LIMIT 10` : 'SELECT 1 AS one';
    show('', write({ cells: [{ kind: 'text', text: t('first_text') }, { kind: 'sql', text: sql }], parameters: {}, at: null }), null);
  }

  async function begin(rest) {
    const [all, given] = await Promise.all([shelf(), get('/api/v1/names')]);
    if (closed) return;
    if (given.ok) names = given.body;
    const kept = recall();
    if (rest && rest !== kept?.name) await load(rest);
    else if (kept) {
      show(kept.name, kept.text, kept.revision);
      book.kept = kept.kept;
      if (kept.dirty) changed();
      books.value = all.includes(kept.kept) ? kept.kept : '';
    } else if (all.includes(app.store.program?.name)) await load(app.store.program.name);
    else fresh();
    root.dataset.ready = 'true';
  }

  const again = calm(() => {
    if (book.at !== null || document.hidden) return;
    for (const cell of cells) if (cell.cell.live) cell.run(true);
  }, REST);
  /** Views and states that came since can be completed, too. */
  const renew = calm(async () => {
    const given = await get('/api/v1/names');
    if (given.ok) names = given.body;
  }, 5000);
  let known = null;

  begin(app.rest());
  return {
    batch: again,
    phase(news) {
      const views = JSON.stringify(news?.views ?? []);
      if (known !== null && known !== views) renew();
      known = views;
    },
    colours: () => cells.forEach((cell) => cell.colours()),
    turns: (rest) => rest && rest !== book.name && load(rest),
    close() {
      closed = true;
      cells.forEach((cell) => cell.close());
      style.remove();
    },
  };
}
