// API: the routes of the server, from its own description.

import { ask, hasToken } from '../frame/ask.js';
import { h, table } from '../frame/dom.js';
import { t } from '../frame/strings.js';

export function open(root) {
  const card = root.appendChild(h('section', 'card'));
  card.append(h('h2', '', t('api')), h('p', '', t('api_text')));
  let closed = false;
  (async () => {
    const answer = await ask('/api/v1/openapi.json');
    if (!answer.ok || closed) return;
    const { paths } = await answer.json();
    const routes = Object.entries(paths).flatMap(([path, of]) => Object.entries(of).map(([verb, { summary }]) => [path, verb, summary]));
    const rows = routes.map(([path, verb, summary]) => {
      if (verb !== 'get') return [h('code', '', `${verb.toUpperCase()} ${path}`), summary];
      // A link brings no token along.
      if (path.includes('{') || hasToken()) return [h('code', '', path), summary];
      const link = h('a', '', path);
      link.href = path;
      return [link, summary];
    });
    card.append(table([t('method'), t('gives')], rows));
  })().catch(() => {});
  return { close: () => (closed = true) };
}
