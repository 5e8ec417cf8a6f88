// What a batch ran, drawn: the program with rows and time, and once it was run again, each output's plan.

import { count, h, span } from '../frame/dom.js';
import { t } from '../frame/strings.js';
import { drawing, frame } from '../lineage/drawing.js';

/** From which share of the time on one step stands out. */
const MOST = 0.4;

export class Plan {
  constructor(act) {
    this.act = act;
    this.plans = [];
    this.element = h('section', 'card plan');
    this.element.hidden = true;
    const head = h('div', 'view-head');
    this.title = head.appendChild(h('h2', '', t('plan')));
    this.pick = h('select');
    this.pick.setAttribute('aria-label', t('plan_of'));
    this.pick.addEventListener('change', () => this.draw());
    head.append(this.pick);
    this.note = h('p', 'small quiet');
    this.place = h('div');
    this.element.append(head, this.note, this.place);
  }

  /** Shows what a batch did in the program's graph; `null` shows nothing. */
  of(report, graph) {
    this.plans = report && graph?.nodes.length ? [ran(report, graph)] : [];
    this.offer();
  }

  /** Adds the plans of a batch that was run again. */
  add(rerun) {
    this.plans = [...this.plans.slice(0, 1).filter((plan) => !plan.again), ...rerun.plans.map(planned)];
    this.offer();
  }

  offer() {
    this.pick.replaceChildren(...this.plans.map((plan, at) => {
      const option = h('option', '', plan.name);
      option.value = String(at);
      return option;
    }));
    this.pick.hidden = this.plans.length < 2;
    this.draw();
  }

  draw() {
    const plan = this.plans[Number(this.pick.value) || 0];
    this.element.hidden = !plan;
    if (!plan) return this.place.replaceChildren();
    this.note.textContent = t(plan.again ? 'plan_again' : 'plan_then') + (plan.left ? ` ${t('steps_left', count(plan.left))}` : '');
    const all = [...plan.told.values()].reduce((sum, told) => sum + (told.busy ?? 0), 0);
    const slowest = Math.max(...[...plan.told.values()].map((told) => told.busy ?? 0));
    const told = (node) => {
      const { rows, busy } = plan.told.get(node.id) ?? {};
      const text = [rows == null ? '' : t('n_rows', count(rows)), busy == null ? '' : span(busy)].filter(Boolean).join(' · ');
      if (!text) return null;
      const share = all && busy ? busy / all : 0;
      // One alone is not slower than others.
      const mark = busy === slowest && share >= MOST && plan.told.size > 1 ? t('slowest', Math.round(share * 100)) : '';
      return { text, share, mark };
    };
    const what = (node, long) => (long ? node.what || t(node.kind) : t(node.kind));
    const { element } = drawing(plan.nodes, { label: plan.name, what, told, act: plan.again ? null : this.act, tight: true });
    // Wide ones are moved, and not made too small to be read.
    element.style.minWidth = `${0.8 * Number(element.getAttribute('width'))}px`;
    element.style.maxWidth = `${element.getAttribute('width')}px`;
    this.place.replaceChildren(frame(element, plan.name));
  }
}

/** The program's graph with what the batch did. */
function ran(report, graph) {
  const told = new Map();
  const { operators, outputs, records } = report.detail;
  for (const node of graph.nodes) {
    const [list, rows] = node.kind === 'output' ? [outputs, null] : [operators, node.kind === 'input' ? records[node.name] : null];
    const done = list.find((each) => each.name === node.name);
    // A source of the same name as an operator is not told apart: rows are those of the stream.
    if (done || rows != null) told.set(node.id, { rows: rows ?? done?.rows, busy: done?.busy_us });
  }
  return { name: t('program_plan'), nodes: graph.nodes, told, again: false, left: 0 };
}

/** The plan of an output that was run again. */
function planned(plan) {
  const nodes = plan.nodes.map((node) => ({ ...node, kind: 'operator' }));
  const told = new Map(plan.nodes.map((node) => [node.id, { rows: node.rows, busy: node.busy_us }]));
  return { name: t('plan_for', plan.output), nodes, told, again: true, left: plan.left_out };
}
