// What the page knows of the program, folded from the live feed.
//
// Bounded: the last reports, one newest state of each view, and nothing else,
// however long the page stays open.

import { History } from './chart.js';
import { follow } from './feed.js';

const REPORTS = 600;
/** Without a word for so long, in milliseconds, the program can't be said to be well. */
const SILENCE = 6000;

export class Store {
  constructor() {
    this.program = null;
    this.inputs = [];
    this.reports = [];
    this.views = new Map();
    this.history = new History();
    /** Records a second by input, in the order of `inputs`. */
    this.rates = [];
    /** The server's clock less ours, in milliseconds. */
    this.skew = 0;
    /** The server's time of the newest news, in microseconds. */
    this.heard = null;
    /** Seconds until the next try; `null` when connected, `undefined` before the first answer. */
    this.wait = undefined;
    /** When the last batch came, by our clock that never steps; `null` before the first. */
    this.came = null;
    this.spoke = performance.now();
    this.listeners = new Set();
  }

  /** Follows the feed for ever. */
  open() {
    follow({
      line: (wait) => this.line(wait),
      phase: (news) => this.phase(news),
      batch: (news) => this.batch(news),
      view: (view) => this.view(view),
      inputs: (inputs) => this.takeInputs(inputs),
      pulse: () => this.word(),
    });
    setInterval(() => this.tell('tick'), 1000);
  }

  /** Calls `listener[event](data)` for each event; gives what ends that. */
  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  tell(event, data) {
    for (const listener of this.listeners) listener[event]?.(data);
  }

  word() {
    this.spoke = performance.now();
  }

  /** Milliseconds without a word from a program that is connected; 0 when that is no reason to worry. */
  silence() {
    const silent = performance.now() - this.spoke;
    return this.wait === null && silent > SILENCE && !document.hidden ? silent : 0;
  }

  /** The server's time now, in microseconds. */
  now() {
    return (Date.now() + this.skew) * 1000;
  }

  /** How the program fares: `word` is a key of the strings, `mood` a class, `why` for people. */
  health() {
    if (this.wait !== null) return { word: this.wait === undefined ? 'connecting' : 'unreached', mood: 'bad', why: '' };
    if (this.silence()) return { word: 'silent', mood: 'bad', why: '' };
    const health = this.program?.health;
    if (!health) return { word: 'connecting', mood: '', why: '' };
    const passing = ['starting', 'stopping'].includes(health.state);
    const mood = health.ready ? 'good' : passing ? 'warn' : health.state === 'stopped' ? '' : 'bad';
    return { word: health.state, mood, why: health.ready || passing ? '' : health.reason };
  }

  line(wait) {
    if (wait === null) this.word();
    this.wait = wait;
    this.tell('line', wait);
  }

  phase(news) {
    this.word();
    if (this.program && news.started !== this.program.started) {
      this.history.clear();
      this.reports = [];
    }
    this.program = news;
    this.heard = news.now;
    this.skew = news.now / 1000 - Date.now();
    for (const name of this.views.keys()) if (!news.views.includes(name)) this.views.delete(name);
    this.tell('phase', news);
  }

  batch(news) {
    this.word();
    if (news.fresh) {
      this.history.clear();
      this.reports = [];
    }
    for (const report of news.reports) {
      const last = this.reports.at(-1);
      if (last && report.batch <= last.batch) continue;
      this.reports.push(report);
      this.history.add(report);
    }
    this.reports.splice(0, this.reports.length - REPORTS);
    if (news.reports.length) this.came = performance.now();
    if (news.reports.length) this.heard = Math.max(this.heard ?? 0, this.now());
    this.tell('batch', news);
  }

  view(view) {
    this.word();
    this.views.set(view.name, view);
    this.tell('view', view);
  }

  takeInputs(inputs) {
    this.word();
    const now = performance.now();
    const before = new Map(this.inputs.map((input) => [`${input.index} ${input.stream}`, input.records]));
    const seconds = this.looked ? Math.max(0.5, (now - this.looked) / 1000) : 0;
    this.rates = inputs.map((input) => {
      const records = before.get(`${input.index} ${input.stream}`);
      return seconds && records !== undefined ? Math.max(0, input.records - records) / seconds : null;
    });
    this.looked = now;
    this.inputs = inputs;
    this.tell('inputs', inputs);
  }
}
