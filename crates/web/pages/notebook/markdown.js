// Markdown as elements: headings, paragraphs, lists, quotes, code, emphasis, links.
//
// Every text becomes a text node. A link leads to a page of ours or to an
// address of the web, and to nothing else; HTML is shown as it is written.

import { h } from '../frame/dom.js';

/** How deep emphasis and links may lie in each other. */
const DEPTH = 4;
const INLINE = /(`+)([^`](?:.*?[^`])?)\1(?!`)|\*\*([^*\n]+?)\*\*|\*([^*\s](?:[^*\n]*?[^*\s])?)\*|\[([^[\]\n]{0,500})\]\(([^()\s]{0,2000})\)/;

/** The elements of a text. */
export function markdown(source) {
  const lines = source.split('\n');
  const out = [];
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    const fence = /^(`{3,})/.exec(line);
    const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
    if (!line.trim()) {
      i++;
    } else if (fence) {
      const end = lines.findIndex((other, at) => at > i && other.startsWith(fence[1]) && !other.replace(/`/g, '').trim());
      const until = end < 0 ? lines.length : end;
      out.push(h('pre', '', lines.slice(i + 1, until).join('\n')));
      i = until + 1;
    } else if (heading) {
      // The page has one first heading already.
      out.push(inline(h(`h${Math.min(6, heading[1].length + 1)}`), heading[2]));
      i++;
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      out.push(h('hr'));
      i++;
    } else if (/^>/.test(line)) {
      const [text, next] = taken(lines, i, (each) => /^>/.test(each));
      const quote = h('blockquote');
      quote.append(inline(h('p'), text.map((each) => each.replace(/^>\s?/, '')).join('\n')));
      out.push(quote);
      i = next;
    } else if (item(line)) {
      const [text, next] = taken(lines, i, (each) => item(each) || /^\s+\S/.test(each));
      out.push(list(text));
      i = next;
    } else {
      const begins = (each) => !each.trim() || /^(#{1,6}\s|>|`{3,})/.test(each) || item(each);
      const [text, next] = taken(lines, i, (each, at) => at === i || !begins(each));
      out.push(inline(h('p'), text.join('\n')));
      i = next;
    }
  }
  return out;
}

const item = (line) => /^\s{0,3}(?:[-*+]|\d{1,9}[.)])\s+/.exec(line);

/** Lines from `from` on that fit, and the place of the first that does not. */
function taken(lines, from, fits) {
  let to = from;
  while (to < lines.length && fits(lines[to], to)) to++;
  return [lines.slice(from, to), to];
}

function list(lines) {
  const made = h(/^\s*\d/.test(lines[0]) ? 'ol' : 'ul');
  const items = [];
  for (const line of lines) {
    const found = item(line);
    if (found) items.push(line.slice(found[0].length));
    else items[items.length - 1] += `\n${line.trim()}`;
  }
  made.append(...items.map((text) => inline(h('li'), text)));
  return made;
}

/** Appends a text with its emphasis, code and links. */
function inline(into, text, depth = 0) {
  let rest = text;
  while (rest) {
    const found = depth < DEPTH ? INLINE.exec(rest) : null;
    if (!found) {
      into.append(rest);
      return into;
    }
    const [whole, , code, strong, weak, name, to] = found;
    if (found.index) into.append(rest.slice(0, found.index));
    if (code !== undefined) into.append(h('code', '', code));
    else if (strong !== undefined) into.append(inline(h('strong'), strong, depth + 1));
    else if (weak !== undefined) into.append(inline(h('em'), weak, depth + 1));
    else into.append(link(name, to, depth, whole));
    rest = rest.slice(found.index + whole.length);
  }
  return into;
}

/** A link to where a link may lead; else the text as it is written. */
function link(name, to, depth, whole) {
  const page = /^#[a-z]+(\/[\w%.~-]*)?$/.test(to);
  if (!page && !isWeb(to)) return document.createTextNode(whole);
  const made = inline(h('a'), name || to, depth + 1);
  made.href = to;
  if (!page) {
    made.rel = 'noopener noreferrer';
    made.target = '_blank';
  }
  return made;
}

function isWeb(to) {
  try {
    return /^https?:\/\//i.test(to) && ['http:', 'https:'].includes(new URL(to).protocol);
  } catch {
    return false;
  }
}
