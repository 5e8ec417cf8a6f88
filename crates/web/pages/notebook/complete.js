// Which names could be meant at a place of a query.

const KEYWORDS = 'SELECT FROM WHERE GROUP BY ORDER HAVING LIMIT OFFSET JOIN LEFT RIGHT FULL INNER CROSS ON USING AS AND OR NOT IN IS NULL LIKE BETWEEN CASE WHEN THEN ELSE END DISTINCT UNION ALL WITH DESC ASC TRUE FALSE CAST INTERVAL OVER PARTITION EXISTS EXTRACT VALUES'.split(' ');
/** Names that are offered at most. */
const MOST = 12;

const bare = (name) => name.replaceAll('"', '').toLowerCase();

/**
 * The names for the word that ends at `caret`: {from, options: [{text, kind}]}.
 * After `name.` those within it; else tables, columns of the tables that the
 * query names, functions and words of SQL.
 */
export function complete(text, caret, names, asked = false) {
  const before = text.slice(0, caret);
  const [whole] = /[\w".@/]*$/.exec(before);
  const dot = whole.lastIndexOf('.');
  const word = bare(whole.slice(dot + 1));
  const from = caret - whole.length + dot + 1;
  if (!asked && word.length < 2 && dot < 0) return { from, options: [] };
  // Within a text or a comment no name is meant.
  const quotes = (before.match(/'/g) ?? []).length;
  if (quotes % 2 || /--[^\n]*$/.test(before)) return { from, options: [] };
  const found = dot >= 0 ? within(bare(whole.slice(0, dot)), text, names) : anywhere(text, names);
  const seen = new Set();
  const fits = ({ text: option }) => {
    const name = bare(option);
    if (!name.startsWith(word) || (!asked && name === word) || seen.has(name)) return false;
    seen.add(name);
    return true;
  };
  return { from, options: found.filter(fits).slice(0, MOST) };
}

/** Tables that the query names: {name or alias: table}. */
function aliases(text, names) {
  const tables = new Map(names.tables.map((table) => [bare(table.name), table]));
  const found = new Map();
  for (const [, name, alias] of text.matchAll(/\b(?:from|join)\s+([\w".@/]+)(?:\s+(?:as\s+)?(\w+))?/gi)) {
    const table = tables.get(bare(name));
    if (!table) continue;
    found.set(bare(name), table);
    if (alias && !KEYWORDS.includes(alias.toUpperCase())) found.set(bare(alias), table);
  }
  return found;
}

const columns = (table) => table.columns.map((text) => ({ text, kind: 'column' }));

function within(owner, text, names) {
  const table = aliases(text, names).get(owner);
  if (table) return columns(table);
  const inside = names.tables.filter(({ name }) => bare(name).startsWith(`${owner}.`));
  // A name that stands in quotes as a whole has its dot within.
  return inside.filter(({ name }) => !name.startsWith('"')).map(({ name, kind }) => ({ text: name.slice(name.indexOf('.') + 1), kind }));
}

function anywhere(text, names) {
  const meant = [...new Set(aliases(text, names).values())];
  return [
    ...meant.flatMap(columns),
    ...names.tables.map(({ name, kind }) => ({ text: name, kind })),
    ...names.functions.map((name) => ({ text: `${name}(`, kind: 'function' })),
    ...KEYWORDS.map((word) => ({ text: word, kind: 'word' })),
  ];
}
