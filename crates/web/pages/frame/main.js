// The frame: header, navigation, theme, language, and the page in the middle.
//
// A page is a folder with a `page.js` that exports `open(root, app)`. That
// draws into `root` and gives an object of listeners to the store's events;
// `close()` of it is called when another page is opened.

import { pages } from '../pages.js';
import { onUnlock } from './ask.js';
import { clock, h, instant, long, say } from './dom.js';
import * as lock from './lock.js';
import { Store } from './store.js';
import { speak, t } from './strings.js';

const $ = (id) => document.getElementById(id);
const THEMES = ['auto', 'light', 'dark'];
const store = new Store();
let page = null;
let opening = 0;

/** What a page is given. It asks the server by `ask` and `tell` of `frame/ask.js`. */
const app = {
  store,
  /** What stands behind the page's name in the address: `#batches/17` gives `17`. */
  rest: () => decoded(location.hash.split('/').slice(1).join('/')),
  /** Goes to a page. */
  go(name, rest) {
    location.hash = rest === undefined ? name : `${name}/${encodeURIComponent(rest)}`;
  },
  /** The colours of the page as they are now, for charts. */
  colours,
};

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** What was chosen before, or a default where the browser keeps nothing. */
function recall(key, otherwise) {
  try {
    return localStorage.getItem(`tidemill.${key}`) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(`tidemill.${key}`, value);
  } catch {
    // A browser that keeps nothing asks again.
  }
}

let language = recall('language', navigator.language.startsWith('zh') ? 'zh' : 'en');
let theme = recall('theme', 'auto');

function colours() {
  const probe = document.body.appendChild(h('span'));
  const names = ['ground', 'card', 'line', 'ink', 'quiet', 'tide', 'bar', 'good', 'warn', 'bad'];
  const found = {};
  for (const name of names) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return found;
}

function navigate() {
  const name = location.hash.slice(1).split('/')[0];
  // The link that skips the navigation is not a page.
  if (name === 'page') return;
  open(name || pages[0]);
}

async function open(name) {
  const turn = ++opening;
  for (const link of $('nav').querySelectorAll('a')) {
    if (link.dataset.page === name) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  if (page?.name === name && page.turns) return page.turns(app.rest());
  close();
  const root = h('div', `of-${pages.includes(name) ? name : 'none'}`);
  $('page').replaceChildren(root);
  if (!pages.includes(name)) return root.append(h('p', 'await', t('no_page')));
  try {
    const module = await import(`../${name}/page.js`);
    // Another page was chosen meanwhile.
    if (turn !== opening) return;
    page = module.open(root, app);
    page.name = name;
    page.deaf = store.listen(page);
  } catch (error) {
    root.append(h('p', 'await', t('broken_page', String(error))));
    throw error;
  }
}

function close() {
  page?.deaf();
  page?.close?.();
  page = null;
}

/** Writes all that does not come from the program: at the start, and in another language. */
function write() {
  speak(language);
  $('nav').setAttribute('aria-label', t('pages'));
  $('nav').replaceChildren(
    ...pages.map((name) => {
      const link = h('a', '', t(name));
      link.href = `#${name}`;
      link.dataset.page = name;
      return link;
    }),
  );
  say($('skip'), t('skip'));
  say($('tongue'), t('tongue'));
  document.documentElement.dataset.theme = theme;
  say($('theme'), t('theme', t(theme)));
  lock.write();
  close();
  navigate();
  frame.phase(store.program);
}

const frame = {
  line(wait) {
    this.lost();
    this.fares();
  },

  phase(news) {
    this.fares();
    if (!news) return;
    const name = news.name || 'Tidemill';
    say($('name'), name, true);
    document.title = name === 'Tidemill' ? name : `${name} · Tidemill`;
    $('error').hidden = news.error === null;
    say($('error'), news.error ?? '');
    this.tick();
  },

  inputs() {
    this.lost();
  },

  batch() {
    this.lost();
  },

  /** What changes by itself. */
  tick() {
    this.lost();
    this.fares();
    const { program } = store;
    if (!program) return;
    const ended = program.phase === 'stopped' || program.phase === 'failed';
    if (!program.started) say($('uptime'), '');
    else if (ended) say($('uptime'), t('started', instant(program.started)));
    else say($('uptime'), t('up', long((store.now() - program.started) / 1e6)));
  },

  lost() {
    const { wait } = store;
    const silent = store.silence();
    $('lost').hidden = !wait && !silent;
    if (silent) return say($('lost'), t('hushed', Math.floor(silent / 1000)));
    if (!wait) return;
    say($('lost'), t('lost', wait) + (store.heard ? t('since', clock(store.heard)) : ''));
  },

  fares() {
    const { word, mood, why } = store.health();
    say($('phase'), t(word));
    $('phase').className = `phase ${mood}`;
    // The error is told by itself; a second time in the health's words is once too often.
    const told = why && !(store.program?.error && why.includes(store.program.error));
    $('health').hidden = !told;
    say($('health'), told ? why : '');
  },
};

$('tongue').addEventListener('click', () => {
  language = language === 'en' ? 'zh' : 'en';
  remember('language', language);
  write();
});
$('theme').addEventListener('click', () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  remember('theme', theme);
  document.documentElement.dataset.theme = theme;
  say($('theme'), t('theme', t(theme)));
  store.tell('colours');
});
$('skip').addEventListener('click', (event) => {
  event.preventDefault();
  $('page').focus();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => store.tell('colours'));
addEventListener('hashchange', navigate);
// `[` and `]` turn the pages.
addEventListener('keydown', (event) => {
  const step = { '[': -1, ']': 1 }[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.target.closest('input, select, textarea')) return;
  const at = pages.indexOf(page?.name);
  app.go(pages[(at + step + pages.length) % pages.length]);
});
store.listen(frame);
// What a page has asked for without a token it asks for again.
onUnlock(write);
write();
store.open();
