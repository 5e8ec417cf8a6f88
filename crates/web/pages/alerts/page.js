// Alerts: what fires, what may soon, what changed lately; silence and a test for each.

import { ask, complaint, tell } from '../frame/ask.js';
import { button, calm, count, h, instant, long, say, table } from '../frame/dom.js';
import { t } from '../frame/strings.js';

const MOODS = { firing: 'bad', missing: 'bad', pending: 'warn', ok: 'good', test: '' };
const WORDS = { firing: 'alert_firing', missing: 'alert_missing', pending: 'alert_pending', ok: 'alert_ok', test: 'alert_test' };
/** For how long a silence lasts, in seconds. */
const SPANS = [900, 3600, 14400, 86400, 604800];
/** Changes that are shown of each alert. */
const SHOWN = 50;

export function open(root, { store }) {
  const none = root.appendChild(h('p', 'await', t('await_program')));
  const cards = new Map();
  let closed = false;

  async function read() {
    try {
      const answer = await ask('/api/v1/alerts');
      if (!answer.ok || closed) return;
      draw(await answer.json());
    } catch {
      // The line is lost; the frame says so.
    }
  }

  function draw(alerts) {
    if (closed) return;
    say(none, t('no_alerts'));
    none.hidden = alerts.length > 0;
    const names = new Set(alerts.map((alert) => alert.name));
    for (const [name, card] of cards) {
      if (names.has(name)) continue;
      card.element.remove();
      cards.delete(name);
    }
    for (const alert of alerts) {
      let card = cards.get(alert.name);
      if (!card) {
        cards.set(alert.name, (card = new Alert(alert.name, read)));
        root.append(card.element);
      }
      card.draw(alert, store.now());
    }
  }

  const soon = calm(read, 1000);
  soon();
  return { batch: soon, phase: soon, close: () => (closed = true) };
}

/** A state as a dot and a word. */
function standing(state) {
  const shown = h('span', `dot ${MOODS[state] ?? ''}`);
  shown.append(h('span', '', t(WORDS[state] ?? state)));
  return shown;
}

class Alert {
  constructor(name, asked) {
    this.name = name;
    this.asked = asked;
    this.element = h('section', 'card alert');
    const head = this.element.appendChild(h('div', 'view-head'));
    this.dot = head.appendChild(h('span', 'dot'));
    const title = head.appendChild(h('h2', 'cut'));
    title.dir = 'auto';
    say(title, name, true);
    this.severity = head.appendChild(h('span'));
    this.counts = head.appendChild(h('span'));
    this.condition = this.element.appendChild(h('code'));
    const tools = this.element.appendChild(h('div', 'toolbar'));
    const field = tools.appendChild(h('label', 'field', t('silence_for')));
    this.span = field.appendChild(h('select'));
    for (const seconds of SPANS) this.span.append(new Option(long(seconds), String(seconds)));
    tools.append(
      button(t('silence_all'), () => this.silence(null, Number(this.span.value))),
      button(t('test_alert'), () => this.post('test', {})),
    );
    this.said = this.element.appendChild(h('p', 'small quiet'));
    this.said.setAttribute('role', 'status');
    this.boxes = Object.fromEntries(
      ['now', 'silences', 'changes'].map((part) => [part, this.element.appendChild(h('div', 'scroll low'))]),
    );
    this.drawn = {};
  }

  draw(alert, time) {
    const bad = alert.firing + alert.missing > 0;
    this.dot.className = `dot ${bad ? 'bad' : alert.pending ? 'warn' : alert.batch ? 'good' : ''}`;
    say(this.severity, alert.severity, true);
    say(this.counts, t('alert_counts', count(alert.firing + alert.missing), count(alert.pending)));
    say(this.condition, `${alert.view}: ${alert.condition}`, true);
    this.part('now', alert.now, (keys) => {
      const heads = [t('alert_key'), t('alert_state'), t('alert_since'), t('alert_value'), t('alert_message'), ''];
      const rows = keys.map((of) => [
        of.key,
        standing(of.state),
        `${instant(of.since)} (${long(Math.max(0, time - of.since) / 1e6)})`,
        of.value ?? '',
        of.message,
        of.silenced ? t('alert_silenced') : this.quiet(of.key),
      ]);
      return [h('h3', '', t('alert_now')), table(heads, rows, [3])];
    });
    this.part('silences', alert.silences, (silences) => {
      const rows = silences.map((of) => [
        of.key ?? t('alert_all'),
        instant(of.until),
        of.why,
        button(t('lift'), () => this.silence(of.key, 0), 'small'),
      ]);
      return [h('h3', '', t('alert_silences')), table([t('alert_key'), t('alert_until'), t('reason'), ''], rows)];
    });
    this.part('changes', alert.changes, (changes) => {
      const heads = [t('time'), t('alert_key'), t('alert_state'), t('alert_value'), t('alert_message')];
      const rows = changes
        .slice(-SHOWN)
        .reverse()
        .map((of) => [instant(of.at), of.key, standing(of.state), of.value ?? '', of.message]);
      return [h('h3', '', t('alert_history')), table(heads, rows, [3])];
    });
  }

  /** Draws a part where it changed, so that a button is not taken from under a finger. */
  part(name, content, make) {
    const text = JSON.stringify(content);
    if (this.drawn[name] === text) return;
    this.drawn[name] = text;
    this.boxes[name].replaceChildren(...(content.length ? make(content) : []));
  }

  quiet(key) {
    return button(t('silence'), () => this.silence(key, Number(this.span.value)), 'small');
  }

  silence(key, seconds) {
    return this.post('silence', { key, seconds });
  }

  async post(what, content) {
    try {
      const answer = await tell(`/api/v1/alerts/${encodeURIComponent(this.name)}/${what}`, content);
      say(this.said, answer.ok ? t('alert_asked') : await complaint(answer));
      this.said.classList.toggle('bad', !answer.ok);
      if (answer.ok) this.asked();
    } catch {
      say(this.said, t('unreached'));
    }
  }
}
