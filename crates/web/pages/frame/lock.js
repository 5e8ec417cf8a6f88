// The question for a token, in place of the page while the server wants one.

import { onLock, setToken, tryToken } from './ask.js';
import { say } from './dom.js';
import { t } from './strings.js';

const $ = (id) => document.getElementById(id);
let why = null;

/** Writes its words, also in another language. */
export function write() {
  say($('lock-title'), t('lock'));
  say($('lock-text'), t('lock_text'));
  say($('lock-label'), t('token'));
  say($('lock-open'), t('unlock'));
  say($('lock-why'), why ? t(why) : '');
  $('lock-why').hidden = !why;
}

function complain(reason) {
  why = reason;
  write();
}

function show(status) {
  const fresh = $('lock').hidden;
  $('lock').hidden = false;
  $('page').hidden = true;
  if (status === 429) complain('guessed');
  if (fresh) $('lock-token').focus();
}

async function open() {
  const token = $('lock-token').value.trim();
  // Another sign could not be sent in a header.
  if (!/^[\x21-\x7e]+$/.test(token)) return complain('no_token');
  $('lock-open').disabled = true;
  try {
    const refused = await tryToken(token);
    if (refused) return complain(refused === 429 ? 'guessed' : refused === 401 ? 'no_token' : 'unreached');
    $('lock-token').value = '';
    complain(null);
    $('lock').hidden = true;
    $('page').hidden = false;
    setToken(token);
  } catch {
    complain('unreached');
  } finally {
    $('lock-open').disabled = false;
  }
}

$('lock-open').addEventListener('click', open);
$('lock-token').addEventListener('keydown', (event) => {
  if (event.key === 'Enter') open();
});
onLock(show);
