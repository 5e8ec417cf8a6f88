// Lineage: inputs, operators and outputs as a graph, with the rates of now on its edges.

import { ask } from '../frame/ask.js';
import { button, count, h, rate, say, span, table } from '../frame/dom.js';
import { sample } from '../frame/sample.js';
import { t } from '../frame/strings.js';
import { drawing } from './drawing.js';

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

  function draw() {
    edges.length = 0;
    if (!graph.nodes.length) return box.replaceChildren(h('p', 'await', t('no_graph')));
    const what = (node, long) => {
      if (!long) return t(node.kind);
      return `${node.kind === 'operator' ? node.what : t(node.kind)}${node.stateful ? ` · ${t('keeps_state')}` : ''}`;
    };
    const drawn = drawing(graph.nodes, { label: t('lineage'), what, act: (node) => go('lineage', node.id) });
    edges.push(...drawn.edges);
    box.replaceChildren(drawn.element);
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
    live = { id, element: h('p', 'strong'), link: h('a') };
    const parts = [head, what, live.element, live.link];
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
      parts.push(state, firstRows(node.name));
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

  /** The first rows of a state, for whoever asks for them: they are read from disk. */
  function firstRows(operator) {
    const place = h('div', 'first-rows');
    place.setAttribute('aria-live', 'polite');
    const look = button(t('first_state'), async () => {
      look.disabled = true;
      try {
        const answer = await ask(`/api/v1/states/${encodeURIComponent(operator)}`);
        const told = await answer.json();
        if (closed) return;
        place.replaceChildren(look, answer.ok ? sample(told, true) : h('p', 'small warn', told.error));
      } catch (error) {
        place.replaceChildren(look, h('p', 'small warn', String(error)));
      } finally {
        look.disabled = false;
      }
    });
    place.append(look);
    return place;
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
    say(live.link, newest ? t('show_batch', newest.batch) : '');
    if (newest) live.link.href = `#batches/${newest.batch}`;
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
