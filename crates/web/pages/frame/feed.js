// The live feed: connects, tells, and connects again when the line is lost.

import { ask, onUnlock } from './ask.js';

const LONGEST_WAIT = 10;

/** The events of an answer: `[name, data]`, one after the other. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const from = Math.max(0, text.length - 1);
    text += value;
    let begin = 0;
    for (let end = text.indexOf('\n\n', from); end >= 0; end = text.indexOf('\n\n', begin)) {
      const [name, data] = text.slice(begin, end).split('\n');
      begin = end + 2;
      if (name.startsWith('event: ') && data?.startsWith('data: ')) yield [name.slice(7), data.slice(6)];
    }
    text = text.slice(begin);
  }
}

/**
 * Follows `/api/v1/live`. Each event goes to `on[event](data)`; `on.line(wait)`
 * hears `null` when connected, the seconds until the next try when not, and
 * `undefined` when a token is waited for. The browser's own reader of events
 * can't send a token, so this is ours.
 */
export function follow(on) {
  let line = null;
  let wait = 1;
  let timer = 0;

  async function connect() {
    clearTimeout(timer);
    line?.abort();
    const mine = new AbortController();
    line = mine;
    try {
      const answer = await ask('/api/v1/live', { signal: mine.signal });
      // Without a token it is of no use to try again; with one it is tried at once.
      if (answer.status === 401) {
        if (line !== mine) return;
        line = null;
        return on.line(undefined);
      }
      if (!answer.ok) throw new Error(answer.statusText);
      wait = 1;
      on.line(null);
      for await (const [event, data] of events(answer.body)) {
        if (line !== mine) return;
        on[event]?.(JSON.parse(data));
      }
    } catch {
      // The line is lost, or was given up.
    }
    if (line !== mine) return;
    line = null;
    countDown(wait);
    wait = Math.min(wait * 2, LONGEST_WAIT);
  }

  function countDown(seconds) {
    on.line(seconds);
    clearTimeout(timer);
    timer = setTimeout(() => (seconds > 1 ? countDown(seconds - 1) : connect()), 1000);
  }

  // A browser opens only six connections to a server, so a page in the back gives up its own.
  document.addEventListener('visibilitychange', () => {
    clearTimeout(timer);
    if (!document.hidden) {
      if (!line) connect();
    } else {
      timer = setTimeout(() => {
        line?.abort();
        line = null;
      }, 5000);
    }
  });
  onUnlock(connect);
  connect();
}
