// Live charts: one view in a form that suits it, as it moves, paused, or as it was.

import { ask } from '../frame/ask.js';
import { button, clock, count, h, number, say } from '../frame/dom.js';
import { t } from '../frame/strings.js';
import { Bars, Empty, Table } from '../overview/view.js';
import { FORMS, lacks, pairs, parts, sensible } from './forms.js';
import { file, Plot } from './plot.js';
import { csv, save } from './save.js';

/** What is kept of the shown view's past: so many batches, and so many cells. */
const STEPS = 240;
const CELLS = 300_000;
/** Forms of the chart library. */
const PLOTS = ['lines', 'heat', 'map', 'cloud'];

export function open(root, app) {
  const { store } = app;
  const bar = h('div', 'toolbar');
  const card = h('section', 'card stage');
  const head = h('div', 'view-head');
  const title = head.appendChild(h('h2', 'cut'));
  title.dir = 'auto';
  const when = head.appendChild(h('span'));
  const body = h('div', 'picture');
  body.tabIndex = 0;
  const note = h('p', 'more');
  const past = h('div', 'past');
  card.append(head, body, note, past);
  root.append(bar, card);

  let name = null;
  /** The batches of the view that are remembered: {view}. */
  let steps = [];
  /** The place of the step that is shown; `null` for the newest. */
  let at = null;
  let picture = null;
  let plot = null;
  let closed = false;
  /** Chosen by the user, by view: form and columns. */
  const chosen = new Map();

  const views = select('view', () => app.go('live', views.value));
  const forms = select('form', () => choose({ form: forms.value }));
  const texts = select('text', () => choose({ text: Number(texts.value) }));
  const numbers = select('number', () => choose({ number: Number(numbers.value) }));
  const wall = button(t('wall'), () => toggleWall());
  const saves = h('span', 'group');
  saves.append(h('span', 'quiet', t('export')));
  const files = Object.fromEntries(
    ['png', 'svg', 'csv'].map((kind) => {
      const made = button(kind.toUpperCase(), () => store_as(kind));
      made.dataset.kind = kind;
      saves.append(made);
      return [kind, made];
    }),
  );
  bar.append(saves, wall);

  const slider = h('input', 'moment');
  slider.type = 'range';
  slider.min = '0';
  slider.setAttribute('aria-label', t('moment'));
  slider.addEventListener('input', () => {
    const place = Number(slider.value);
    at = place >= steps.length - 1 ? null : place;
    draw();
  });
  const hold = button(t('pause'), () => {
    // The newest is shown and stays: a step that comes does not move it.
    at = at === null ? Math.max(0, steps.length - 1) : null;
    draw();
  });
  hold.id = 'hold';
  const shown = h('span', 'quiet said');
  past.append(hold, slider, shown);

  function select(key, act) {
    const label = h('label', 'field');
    const made = h('select');
    made.id = `pick-${key}`;
    made.addEventListener('change', act);
    label.append(h('span', 'quiet', t({ view: 'view', form: 'form', text: 'columns', number: 'number' }[key])), made);
    bar.append(label);
    made.field = label;
    return made;
  }

  /** Fills a list of choices, and keeps its element while nothing changed: an open list stays open. */
  function fill(list, choices, value) {
    const key = JSON.stringify([choices, value]);
    if (list.filled === key) return;
    list.filled = key;
    list.replaceChildren(
      ...choices.map(([of, text]) => {
        const made = h('option', '', text);
        made.value = of;
        return made;
      }),
    );
    list.value = String(value);
  }

  function choose(what) {
    chosen.set(name, { ...chosen.get(name), ...what });
    draw();
  }

  /** What is shown of which columns. */
  function picks(view) {
    const own = chosen.get(name) ?? {};
    const found = parts(view);
    const among = (value, list) => (list.includes(value) ? value : (list[0] ?? null));
    const text = among(own.text, found.texts);
    return {
      form: own.form ?? sensible(view),
      text,
      second: found.texts.find((i) => i !== text) ?? null,
      number: among(own.number, found.numbers),
      time: found.moving[0] ?? null,
      place: found.place,
      found,
    };
  }

  function trim() {
    let cells = steps.reduce((sum, { view }) => sum + view.rows.length * view.columns.length, 0);
    while (steps.length > 1 && (steps.length > STEPS || cells > CELLS)) {
      const { view } = steps.shift();
      cells -= view.rows.length * view.columns.length;
      if (at !== null) at = Math.max(0, at - 1);
    }
  }

  function take(view) {
    const last = steps.at(-1)?.view;
    if (last && view.batch < last.batch) steps = [];
    if (last && view.batch === last.batch) steps.pop();
    steps.push({ view });
    trim();
  }

  async function remember(of) {
    try {
      const answer = await ask(`/api/v1/views/${encodeURIComponent(of)}/history`);
      if (!answer.ok || closed || of !== name) return;
      const { snapshots } = await answer.json();
      const first = steps[0]?.view.batch ?? Infinity;
      steps = [...snapshots.filter((view) => view.batch < first).map((view) => ({ view })), ...steps];
      trim();
      draw();
    } catch {
      // What comes from now on is remembered all the same.
    }
  }

  function turns(rest) {
    const all = [...store.views.keys()].sort();
    const next = rest || all[0] || null;
    if (next === name) return draw();
    name = next;
    steps = [];
    at = null;
    picture = null;
    plot?.close();
    plot = null;
    body.replaceChildren();
    if (name !== null) {
      const now = store.views.get(name);
      if (now) take(now);
      remember(name);
    }
    draw();
  }

  function draw() {
    const all = [...store.views.keys()].sort();
    fill(views, all.map((view) => [view, view]), name ?? '');
    hold.textContent = t(at === null ? 'pause' : 'go_on');
    slider.max = String(Math.max(0, steps.length - 1));
    slider.value = String(at ?? steps.length - 1);
    slider.disabled = steps.length < 2;
    const step = steps[at ?? steps.length - 1];
    for (const control of [forms, texts, numbers]) control.field.hidden = !step;
    for (const each of Object.values(files)) each.disabled = !step;
    if (!step) {
      say(title, name ?? '');
      picture = null;
      return body.replaceChildren(h('p', 'await', t(name === null ? 'await_running' : 'await_program')));
    }
    const { view } = step;
    const picked = picks(view);
    const { form, found } = picked;
    fill(forms, FORMS.map((each) => [each, t(each)]), form);
    const names = (list) => list.map((i) => [String(i), view.columns[i].name]);
    fill(texts, names(found.texts), picked.text ?? '');
    fill(numbers, names(found.numbers), picked.number ?? '');
    texts.field.hidden = found.texts.length < 2;
    numbers.field.hidden = found.numbers.length < 2;
    say(title, view.name, true);
    say(when, t('of_batch', count(view.batch), clock(view.time)));
    say(shown, at === null ? t('is_live') : t('paused', count(view.batch), clock(view.time)));
    body.setAttribute('aria-label', `${view.name}: ${t(form)}`);
    const missing = lacks(form, view);
    files.png.disabled = files.svg.disabled = form === 'table' || missing !== null || !view.rows.length;
    const told = [];
    if (view.rows.length < view.total) told.push(t('first_rows', count(view.rows.length), count(view.total)));
    if (view.cut) told.push(t('cut', count(view.cut)));
    say(note, told.join(' '));
    if (missing) {
      picture = null;
      return body.replaceChildren(h('p', 'await', t('does_not_fit', t(missing))));
    }
    paint(form, view, picked);
  }

  function paint(form, view, picked) {
    if (PLOTS.includes(form) && view.rows.length) return chart(form, view, picked);
    plot?.close();
    plot = null;
    const kind = !view.rows.length ? Empty : form === 'bars' ? Bars : form === 'number' ? Big : Table;
    if (!(picture instanceof kind)) {
      picture = new kind();
      body.replaceChildren(picture.element);
    }
    picture.draw(view, picked);
  }

  async function chart(form, view, picked) {
    picture = null;
    if (!plot || !body.contains(plot.element)) {
      plot = new Plot();
      body.replaceChildren(plot.element);
    }
    const mine = plot;
    mine.element.setAttribute('aria-label', `${view.name}: ${t(form)}`);
    try {
      await mine.draw(form, steps.slice(0, (at ?? steps.length - 1) + 1), picked, app.colours());
    } catch (error) {
      if (mine === plot) body.replaceChildren(h('p', 'await', t('no_chart', String(error))));
    }
  }

  async function store_as(kind) {
    const until = (at ?? steps.length - 1) + 1;
    const { view } = steps[until - 1];
    const picked = picks(view);
    save(kind === 'csv' ? csv(view) : await file(kind, picked.form, steps.slice(0, until), picked, app.colours()), view, kind);
  }

  function toggleWall(on = !document.body.classList.contains('wall')) {
    document.body.classList.toggle('wall', on);
    say(wall, t(on ? 'leave' : 'wall'));
    // Without the full screen the wall fills the window, which is what a second screen shows anyway.
    if (on && !document.fullscreenElement) document.documentElement.requestFullscreen?.().catch(() => {});
    if (!on && document.fullscreenElement) document.exitFullscreen().catch(() => {});
  }

  const left = () => !document.fullscreenElement && document.body.classList.contains('wall') && toggleWall(false);
  const escape = (event) => event.key === 'Escape' && document.body.classList.contains('wall') && toggleWall(false);
  document.addEventListener('fullscreenchange', left);
  document.addEventListener('keydown', escape);
  turns(app.rest());
  return {
    view(view) {
      if (name === null) turns(app.rest());
      if (view.name !== name) return fill(views, [...store.views.keys()].sort().map((each) => [each, each]), name ?? '');
      take(view);
      draw();
    },
    phase: (news) => news && draw(),
    colours: draw,
    turns,
    close() {
      closed = true;
      plot?.close();
      document.removeEventListener('fullscreenchange', left);
      document.removeEventListener('keydown', escape);
      toggleWall(false);
    },
  };
}

/** One number, as large as there is room. */
class Big {
  constructor() {
    this.element = h('div', 'big');
    this.value = this.element.appendChild(h('output'));
    this.name = this.element.appendChild(h('p', 'quiet cut'));
    this.name.dir = 'auto';
  }

  draw(view, picked) {
    const value = view.rows[0][picked.number];
    say(this.value, value === null ? 'null' : number(value));
    const others = pairs(view, picked)[0].text;
    say(this.name, [view.columns[picked.number].name, picked.text === null ? '' : others].filter(Boolean).join(' · '), true);
  }
}
