// API: the routes of the server, from its own description.

import { h, table } from '../frame/dom.js';
import { t } from '../frame/strings.js';

export function open(root) {
  const card = root.appendChild(h('section', 'card'));
  card.append(h('h2', '', t('api')), h('p', '', t('api_text')));
  let closed = false;
  (async () => {
    const answer = await fetch('/api/v1/openapi.json');
    if (!answer.ok || closed) return;
    const { paths } = await answer.json();
    const rows = Object.entries(paths).map(([path, { get }]) => {
      if (path.includes('{')) return [h('code', '', path), get.summary];
      const link = h('a', '', path);
      link.href = path;
      return [link, get.summary];
    });
    card.append(table([t('method'), t('gives')], rows));
  })().catch(() => {});
  return { close: () => (closed = true) };
}
