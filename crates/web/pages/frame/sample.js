// The first rows of something as a table; and two of them compared.

import { count, h, number, table } from './dom.js';
import { t } from './strings.js';

/** A cell of a sample, as an element or a text. */
const cell = (value) => (value === null ? h('span', 'null', 'null') : typeof value === 'number' ? number(value) : String(value));
const numbers = (columns, first = 0) => columns.flatMap((column, i) => (column.type === 'number' ? [i + first] : []));
const heads = (columns) => columns.map((column) => column.name);

function within(made, label) {
  const box = h('div', 'scroll');
  box.tabIndex = 0;
  box.setAttribute('role', 'region');
  box.setAttribute('aria-label', label);
  box.append(made);
  return box;
}

/** `{name, total, columns, rows, cut}` as a table, with how many rows there are. */
export function sample(of, always = false) {
  const box = h('div', 'sample');
  const left = of.total > of.rows.length;
  const said = left ? t('first_rows', count(of.rows.length), count(of.total)) : t('n_rows', count(of.total));
  if (of.rows.length || (always && of.columns.length)) {
    box.append(within(table(heads(of.columns), of.rows.map((row) => row.map(cell)), numbers(of.columns)), of.name));
  }
  box.append(h('p', 'small quiet', said + (of.cut ? ` ${t('cut', of.cut)}` : '')));
  return box;
}

/** Rows that are on one side only, by sign and colour: those that are gone, then those that came. */
export function difference(removed, added) {
  const sign = (mark, key) => {
    const made = h('b', `sign ${key}`, mark);
    made.setAttribute('role', 'img');
    made.setAttribute('aria-label', t(key));
    made.title = t(key);
    return made;
  };
  const parts = [];
  const columns = added.columns.length ? added.columns : removed.columns;
  const same = JSON.stringify(heads(removed.columns)) === JSON.stringify(heads(added.columns));
  const rows = (side, mark, key) => side.rows.map((row) => [sign(mark, key), ...row.map(cell)]);
  const put = (columns, rows) => rows.length && parts.push(within(marked(table(['', ...heads(columns)], rows, numbers(columns, 1))), t('differences')));
  if (same || !removed.rows.length || !added.rows.length) {
    put(added.rows.length ? columns : removed.columns, [...rows(removed, '−', 'gone'), ...rows(added, '+', 'came')]);
  } else {
    put(removed.columns, rows(removed, '−', 'gone'));
    put(added.columns, rows(added, '+', 'came'));
  }
  const left = removed.total - removed.rows.length + added.total - added.rows.length;
  if (left > 0) parts.push(h('p', 'small quiet', t('more_differ', count(left))));
  const box = h('div', 'sample');
  box.append(...parts);
  return box;
}

/** Lines in the colour of their sign. */
function marked(made) {
  for (const line of made.tBodies[0].rows) line.className = line.querySelector('.sign').classList.contains('gone') ? 'gone' : 'came';
  return made;
}
