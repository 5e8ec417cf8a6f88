// Lineage: inputs, operators and outputs as a graph, with the rates of now on its edges.

import { ask } from '../frame/ask.js';
import { count, h, rate, say, span, table } from '../frame/dom.js';
import { t } from '../frame/strings.js';
import { layout } from './layout.js';

const SVG = 'http://www.w3.org/2000/svg';
const [WIDE, HIGH, ACROSS, DOWN] = [190, 54, 270, 84];
/** The time over which rates are taken, in microseconds. */
const PRESENT = 5e6;

export function open(root, { store, go, rest }) {
  const box = h('section', 'card graph');
  box.setAttribute('aria-label', t('lineage'));
  const aside = h('section', 'card detail');
  const halves = h('div', 'graph-room');
  halves.append(box, aside);
  root.append(halves);
  let graph = null;
  let closed = false;
  const edges = [];
  /** What operators gave lately, by batch: {took, rows by node, busy by node}. */
  let recent = [];
  let asking = false;

  async function fetchGraph() {
    try {
      const answer = await ask('/api/v1/graph');
      if (!answer.ok || closed) return;
      graph = await answer.json();
    } catch {
      return;
    }
    draw();
    choose(rest());
  }

  function svg(tag, attributes, parent) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    parent?.append(made);
    return made;
  }

  function draw() {
    edges.length = 0;
    if (!graph.nodes.length) return box.replaceChildren(h('p', 'await', t('no_graph')));
    const places = layout(graph.nodes);
    const rows = [...places.values()].map((place) => place.row);
    const [top, bottom] = [Math.min(...rows), Math.max(...rows)];
    const columns = Math.max(...[...places.values()].map((place) => place.column));
    const [width, height] = [columns * ACROSS + WIDE + 20, (bottom - top) * DOWN + HIGH + 20];
    const drawing = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'group', 'aria-label': t('lineage') });
    const at = (id) => ({ x: 10 + places.get(id).column * ACROSS, y: 10 + (places.get(id).row - top) * DOWN });
    for (const node of graph.nodes) {
      for (const id of node.inputs) {
        if (!places.has(id)) continue;
        const [a, b] = [at(id), at(node.id)];
        const [x1, y1, x2, y2] = [a.x + WIDE, a.y + HIGH / 2, b.x, b.y + HIGH / 2];
        const bend = (x2 - x1) / 2;
        svg('path', { class: 'edge', d: `M${x1},${y1}C${x1 + bend},${y1} ${x2 - bend},${y2} ${x2},${y2}` }, drawing);
        const label = svg('text', { class: 'rate', x: (x1 + x2) / 2, y: (y1 + y2) / 2 - 6, 'text-anchor': 'middle' }, drawing);
        edges.push({ from: id, label });
      }
    }
    for (const node of graph.nodes) {
      const { x, y } = at(node.id);
      const group = svg('g', { class: `node ${node.kind}`, tabindex: 0, role: 'button', transform: `translate(${x},${y})` }, drawing);
      group.setAttribute('aria-label', `${t(node.kind)} ${node.name}`);
      svg('rect', { width: WIDE, height: HIGH, rx: node.kind === 'operator' ? 8 : HIGH / 2 }, group);
      const name = svg('text', { class: 'name', x: WIDE / 2, y: 23, 'text-anchor': 'middle' }, group);
      name.textContent = short(node.name, 22);
      const what = svg('text', { class: 'what', x: WIDE / 2, y: 41, 'text-anchor': 'middle' }, group);
      what.textContent = short(`${node.kind === 'operator' ? node.what : t(node.kind)}${node.stateful ? ` · ${t('keeps_state')}` : ''}`, 30);
      svg('title', {}, group).textContent = `${node.name}\n${node.what}`;
      group.dataset.id = node.id;
      const act = () => go('lineage', node.id);
      group.addEventListener('click', act);
      group.addEventListener('keydown', (event) => {
        if (event.key === 'Enter' || event.key === ' ') {
          event.preventDefault();
          act();
        }
      });
    }
    box.replaceChildren(drawing);
    rates();
  }

  /** Rows a second of what a node gives, over the last seconds; null when that is not known. */
  function rateOf(id) {
    const took = recent.reduce((sum, batch) => sum + batch.took, 0);
    if (!took || !recent.some((batch) => batch.rows.has(id))) return null;
    return (recent.reduce((sum, batch) => sum + (batch.rows.get(id) ?? 0), 0) * 1e6) / took;
  }

  function rates() {
    for (const { from, label } of edges) {
      const now = rateOf(from);
      label.textContent = now === null ? '' : `${rate(now)}/s`;
    }
  }

  /** Looks at the newest batch's details, one question at a time. */
  async function look() {
    const last = store.reports.at(-1);
    if (!last || asking || closed || last.batch === recent.at(-1)?.batch) return;
    asking = true;
    try {
      const answer = await ask(`/api/v1/batches/${last.batch}`);
      if (answer.ok && !closed) take(await answer.json());
    } catch {
      // The line is lost; the frame says so.
    } finally {
      asking = false;
    }
  }

  function take(report) {
    const before = store.reports.findLast((other) => other.batch < report.batch);
    const rows = new Map();
    for (const [stream, n] of Object.entries(report.detail.records)) rows.set(`input ${stream}`, n);
    for (const operator of report.detail.operators) {
      if (!rows.has(`operator ${operator.name}`)) rows.set(`operator ${operator.name}`, operator.rows);
    }
    const busy = new Map(report.detail.operators.map((operator) => [`operator ${operator.name}`, operator]));
    recent.push({ batch: report.batch, time: report.time, took: before ? report.time - before.time : 0, rows, busy });
    recent = recent.filter((batch) => report.time - batch.time < PRESENT);
    rates();
    figures();
  }

  let live = null;

  function choose(id) {
    for (const node of box.querySelectorAll('.node')) node.classList.toggle('chosen', node.dataset.id === id);
    const node = graph?.nodes.find((each) => each.id === id);
    live = null;
    if (!node) return aside.replaceChildren(h('p', 'await', t('choose_node')));
    const head = h('div', 'view-head');
    const name = head.appendChild(h('h2', 'cut'));
    name.dir = 'auto';
    say(name, node.name, true);
    head.append(h('span', '', t(node.kind)));
    const what = h('p', '', node.what);
    what.dir = 'auto';
    live = { id, element: h('p', 'strong') };
    const parts = [head, what, live.element];
    const link = (to) => {
      const made = h('a', '', to.name);
      made.href = `#lineage/${encodeURIComponent(to.id)}`;
      return made;
    };
    const links = (key, list) => {
      if (!list.length) return;
      const line = h('p', '', `${t(key)}: `);
      list.forEach((to, i) => line.append(...(i ? [', '] : []), link(to)));
      parts.push(line);
    };
    links('reads', graph.nodes.filter((other) => node.inputs.includes(other.id)));
    links('read_by', graph.nodes.filter((other) => other.inputs.includes(node.id)));
    if (node.stateful) {
      const state = h('p', 'small quiet', `${t('keeps_state')}: `);
      state.append(h('code', '', `tidemill sql -e 'SELECT * FROM state."${node.name}"'`));
      parts.push(state);
    }
    if (node.kind === 'output' && store.views.has(node.name)) {
      const chart = h('a', '', t('show_chart'));
      chart.href = `#live/${encodeURIComponent(node.name)}`;
      const line = h('p');
      line.append(chart);
      parts.push(line);
    }
    const block = (key, content) => parts.push(h('h3', '', t(key)), h('pre', '', content));
    if (node.definition) block('query', node.definition);
    parts.push(table([t('columns'), ''], node.columns.map((column) => [column.name, column.type])));
    if (node.plan) block('plan', node.plan);
    aside.replaceChildren(...parts);
    figures();
  }

  /** Rows and time of the node that is shown, as they are now. */
  function figures() {
    if (!live) return;
    const newest = recent.at(-1);
    const now = rateOf(live.id);
    const busy = newest?.busy.get(live.id);
    const told = [];
    if (now !== null) told.push(`${t('per_second')}: ${rate(now)}`);
    if (busy) told.push(`${t('batch')} ${newest.batch}: ${count(busy.rows)} ${t('rows')}, ${span(busy.busy_us)}`);
    say(live.element, told.join(' · '));
  }

  fetchGraph();
  return {
    batch: look,
    phase: (news) => news && !graph?.nodes.length && fetchGraph(),
    line: (wait) => wait === null && fetchGraph(),
    turns: choose,
    close: () => (closed = true),
  };
}

const short = (text, most) => ([...text].length > most ? `${[...text].slice(0, most - 1).join('')}…` : text);
