// A graph as a drawing: boxes in columns, each right of all that it reads. Of the lineage, and of plans.

import { h } from '../frame/dom.js';
import { layout } from './layout.js';

const SVG = 'http://www.w3.org/2000/svg';
const EDGE = 10;

export function svg(tag, attributes, parent) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent?.append(made);
  return made;
}

export const short = (text, most) => ([...text].length > most ? `${[...text].slice(0, most - 1).join('')}…` : text);

/**
 * Draws nodes `{id, name, kind, inputs}` under `label`. `what(node)` is a node's second line,
 * `told(node)` its third, if there is to be one: `{text, share, mark}` with the share of the time
 * from 0 to 1 and a word that makes it stand out. `act(node)` is what a click does.
 * Gives `{element, edges}`, an edge with the label over it as `{from, label}`.
 */
export function drawing(nodes, { label, what, told = null, act = null, tight = false }) {
  const [wide, high, down] = told ? [236, 74, 100] : [190, 54, 84];
  const places = layout(nodes);
  const rows = [...places.values()].map((place) => place.row);
  const [top, bottom] = [Math.min(...rows), Math.max(...rows)];
  const across = wide + (tight ? 36 : 80);
  const columns = Math.max(...[...places.values()].map((place) => place.column));
  const [width, height] = [columns * across + wide + 2 * EDGE, (bottom - top) * down + high + 2 * EDGE];
  const element = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'group', 'aria-label': label });
  const at = (id) => ({ x: EDGE + places.get(id).column * across, y: EDGE + (places.get(id).row - top) * down });
  const edges = [];
  for (const node of nodes) {
    for (const id of node.inputs) {
      if (!places.has(id)) continue;
      const [a, b] = [at(id), at(node.id)];
      const [x1, y1, x2, y2] = [a.x + wide, a.y + high / 2, b.x, b.y + high / 2];
      const bend = (x2 - x1) / 2;
      svg('path', { class: 'edge', d: `M${x1},${y1}C${x1 + bend},${y1} ${x2 - bend},${y2} ${x2},${y2}` }, element);
      const text = svg('text', { class: 'rate', x: (x1 + x2) / 2, y: (y1 + y2) / 2 - 6, 'text-anchor': 'middle' }, element);
      edges.push({ from: id, label: text });
    }
  }
  for (const node of nodes) box(node, at(node.id));
  return { element, edges };

  function box(node, { x, y }) {
    const more = told?.(node) ?? null;
    const group = svg('g', { class: `node ${node.kind}`, transform: `translate(${x},${y})` }, element);
    const said = `${what(node, false)} ${node.name}${more ? `: ${more.text}${more.mark ? `, ${more.mark}` : ''}` : ''}`;
    group.setAttribute('aria-label', said);
    group.setAttribute('role', act ? 'button' : 'img');
    group.dataset.id = node.id;
    if (more?.mark) group.classList.add('slowest');
    svg('rect', { width: wide, height: high, rx: node.kind === 'operator' ? 8 : high / 2 }, group);
    if (more?.share) svg('rect', { class: 'share', x: 14, y: high - 9, width: Math.max(1, more.share * (wide - 28)), height: 3, rx: 1.5 }, group);
    const line = (className, offset, text) => {
      svg('text', { class: className, x: wide / 2, y: offset, 'text-anchor': 'middle' }, group).textContent = text;
    };
    line('name', 23, short(node.name, told ? 26 : 20));
    line('what', 41, short(what(node, true), told ? 33 : 27));
    if (more) line('figures', 59, short(`${more.text}${more.mark ? ` · ${more.mark}` : ''}`, 38));
    svg('title', {}, group).textContent = `${node.name}\n${node.what}`;
    if (!act) return;
    group.setAttribute('tabindex', 0);
    group.addEventListener('click', () => act(node));
    group.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' || event.key === ' ') {
        event.preventDefault();
        act(node);
      }
    });
  }
}

/** A box that a wide drawing is moved in, by keyboard too. */
export function frame(element, label) {
  const box = h('div', 'graph');
  box.tabIndex = 0;
  box.setAttribute('role', 'region');
  box.setAttribute('aria-label', label);
  box.append(element);
  return box;
}
