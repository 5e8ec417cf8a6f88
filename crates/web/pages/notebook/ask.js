// Questions to the program, and notebooks on its shelf.

import { ask, tell } from '../frame/ask.js';

/** How often one that runs is looked at, in milliseconds. */
const LOOK = 400;

/** An answer of the server as {ok, status, body}; one that can't be had has the status 0. */
async function fetched(path, json) {
  try {
    const answer = await (json === undefined ? ask(path) : tell(path, json));
    const body = await answer.json().catch(() => ({}));
    return { ok: answer.ok, status: answer.status, body };
  } catch (error) {
    return { ok: false, status: 0, body: { error: String(error) } };
  }
}

export const get = (path) => fetched(path);
export const post = (path, json) => fetched(path, json);

/** One question: `answer` is a promise of {ok, status, body}, `cancel` ends it. */
export class Query {
  constructor(question, progress) {
    this.id = [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
    this.path = `/api/v1/query/${this.id}`;
    this.running = true;
    this.answer = post('/api/v1/query', { ...question, id: this.id }).then((answer) => {
      this.running = false;
      clearTimeout(this.timer);
      return answer;
    });
    const look = async () => {
      const { ok, body } = await get(this.path);
      if (!this.running) return;
      if (ok) progress(body);
      this.timer = setTimeout(look, LOOK);
    };
    this.timer = setTimeout(look, LOOK);
  }

  cancel() {
    return post(`${this.path}/cancel`, {});
  }
}
