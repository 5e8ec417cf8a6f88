// A notebook as one readable file: Markdown, with blocks of SQL that say how they are shown.
//
//     # Words
//
//     ```parameters
//     least = 10
//     ```
//
//     ```sql form=bars label=word number=n live
//     SELECT word, n FROM top WHERE n > {{least}}
//     ```
//
// What `parse` gives, `write` writes; what neither knows stays Markdown.

/** Divides two cells of Markdown that follow each other. */
const DIVIDE = '<!-- cell -->';
/** Characters and cells of a file at most. */
const TEXT = 1 << 20;
const CELLS = 200;
/** How a block may be shown. */
const OPTIONS = ['form', 'label', 'number'];

/** A file as {cells: [{kind, text, form?, label?, number?, live?}], parameters: {name: value}, at}. */
export function parse(source) {
  const cells = [];
  const parameters = Object.create(null);
  let at = null;
  let prose = [];
  const flush = () => {
    const text = prose.join('\n').replace(/^\n+|\s+$/g, '');
    if (text) cells.push({ kind: 'text', text });
    prose = [];
  };
  const lines = source.slice(0, TEXT).replace(/^\ufeff/, '').split(/\r?\n/);
  for (let i = 0; i < lines.length; i++) {
    const fence = /^(`{3,})(\S*)(.*)$/.exec(lines[i]);
    if (!fence) {
      if (lines[i].trim() === DIVIDE) flush();
      else prose.push(lines[i]);
      continue;
    }
    const [, ticks, kind, rest] = fence;
    const end = closing(lines, i, ticks.length);
    const inner = lines.slice(i + 1, end);
    if (kind === 'sql') {
      flush();
      cells.push({ kind: 'sql', text: inner.join('\n'), ...options(rest) });
    } else if (kind === 'parameters') {
      flush();
      at = Number(options(rest).at) || null;
      for (const line of inner) {
        const found = /^\s*([A-Za-z_]\w*)\s*=\s*(.*?)\s*$/.exec(line);
        if (found) parameters[found[1]] = value(found[2]);
      }
    } else {
      prose.push(...lines.slice(i, end + 1));
    }
    i = end;
  }
  flush();
  return { cells: cells.slice(0, CELLS), parameters, at };
}

/** The line of the fence that closes the block at `from`; without one the block goes to the end. */
function closing(lines, from, ticks) {
  for (let i = from + 1; i < lines.length; i++) {
    const found = /^(`{3,})\s*$/.exec(lines[i]);
    if (found && found[1].length >= ticks) return i;
  }
  return lines.length;
}

/** Options behind a fence, of which values stand as in an address. */
function options(rest) {
  const found = {};
  for (const word of rest.trim().split(/\s+/)) {
    const [key, ...parts] = word.split('=');
    if (key === 'live' && !parts.length) found.live = true;
    if ((OPTIONS.includes(key) || key === 'at') && parts.length) found[key] = plain(parts.join('='));
  }
  return found;
}

function plain(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** A parameter's value: JSON, or a text as it stands there. */
function value(text) {
  try {
    const found = JSON.parse(text);
    return found !== null && typeof found === 'object' ? text : found;
  } catch {
    return text;
  }
}

/** A notebook as a file. */
export function write({ cells, parameters, at }) {
  const parts = [];
  const names = Object.keys(parameters);
  const given = names.map((name) => `${name} = ${JSON.stringify(parameters[name])}`);
  if (given.length || at) parts.push(block(`parameters${at ? ` at=${at}` : ''}`, given.join('\n')));
  cells.forEach((cell, i) => {
    if (cell.kind === 'text') {
      if (cells[i - 1]?.kind === 'text') parts.push(DIVIDE);
      if (cell.text.trim()) parts.push(cell.text.replace(/^\n+|\s+$/g, ''));
      return;
    }
    const said = OPTIONS.filter((key) => cell[key]).map((key) => `${key}=${encodeURIComponent(cell[key])}`);
    if (cell.live) said.push('live');
    parts.push(block(['sql', ...said].join(' '), cell.text));
  });
  return `${parts.join('\n\n')}\n`;
}

/** A fenced block whose fence is longer than any within. */
function block(head, text) {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map((run) => run[0].length));
  const fence = '`'.repeat(longest + 1);
  return `${fence}${head}\n${text}\n${fence}`;
}

/** The names in `{{name}}` of all cells of SQL, each once, in order. */
export function named(cells) {
  const found = new Set();
  for (const cell of cells) {
    if (cell.kind === 'sql') for (const [, name] of cell.text.matchAll(/\{\{\s*([A-Za-z_]\w*)\s*\}\}/g)) found.add(name);
  }
  return [...found];
}
