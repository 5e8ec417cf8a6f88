// Asks the server, with the token where it wants one.
//
// The token is kept for this tab alone, and goes only into a header to the
// server that the page came from: there is no cookie that another page could
// make the browser send.

const KEY = 'tidemill.token';
let held = recall();
const unlocked = new Set();
let lock = () => {};

function recall() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** Whether a token is sent. */
export const hasToken = () => held !== null;

/** Takes a token, or with `null` forgets it, and tells those who wait for one. */
export function setToken(token) {
  held = token;
  try {
    if (token === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, token);
  } catch {
    // A browser that keeps nothing asks again after a reload.
  }
  if (token !== null) for (const listener of unlocked) listener();
}

/** Calls `listener()` each time a token was taken. */
export const onUnlock = (listener) => unlocked.add(listener);

/** Calls `listener(status)` when the server wants a token, or another one. */
export const onLock = (listener) => (lock = listener);

/** As `fetch`, of this server. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (held !== null) headers.Authorization = `Bearer ${held}`;
  const sent = held;
  const answer = await fetch(path, { ...options, headers, credentials: 'omit', cache: 'no-store' });
  // An answer to a token that was replaced meanwhile says nothing of the new one.
  if ((answer.status === 401 || answer.status === 429) && sent === held) lock(answer.status);
  return answer;
}

/** Sends JSON to a route that changes something. */
export const tell = (path, content) =>
  ask(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(content) });

/** What an answer that is not `ok` says is wrong. */
export async function complaint(answer) {
  try {
    return (await answer.json()).error ?? answer.statusText;
  } catch {
    return answer.statusText;
  }
}

/** Whether the server knows a token: `null`, or the status of its refusal. */
export async function tryToken(token) {
  const headers = { Authorization: `Bearer ${token}` };
  const answer = await fetch('/api/v1/caller', { headers, credentials: 'omit', cache: 'no-store' });
  return answer.ok ? null : answer.status;
}
