// The live feed: connects, tells, and connects again when the line is lost.

const EVENTS = ['phase', 'inputs', 'batch', 'view', 'pulse'];
const LONGEST_WAIT = 10;

/**
 * Follows `/api/v1/live`. Each event goes to `on[event](data)`; `on.line(wait)`
 * hears `null` when connected and the seconds until the next try when not.
 */
export function follow(on) {
  let source = null;
  let wait = 1;
  let timer = 0;

  function connect() {
    clearTimeout(timer);
    source?.close();
    source = new EventSource('/api/v1/live');
    source.onopen = () => {
      wait = 1;
      on.line(null);
    };
    source.onerror = () => {
      // The browser's own retry gives up on a busy server; ours doesn't.
      source.close();
      source = null;
      countDown(wait);
      wait = Math.min(wait * 2, LONGEST_WAIT);
    };
    for (const event of EVENTS) {
      source.addEventListener(event, (message) => on[event](JSON.parse(message.data)));
    }
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
      if (!source) connect();
    } else {
      timer = setTimeout(() => {
        source?.close();
        source = null;
      }, 5000);
    }
  });
  connect();
}
