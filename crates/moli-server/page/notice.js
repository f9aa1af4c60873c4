// What the page says beside the conversation: to screen readers, and in a bar at the bottom.

import { button, byId } from './dom.js';
import { t } from './i18n.js';

const SHOWN_MS = 20_000;
let timer;

/** Says a text to screen readers. */
export function announce(text) {
  byId('status').textContent = text;
}

/** Shows a text for a while, with a button that runs `action` if there is one: { word, run }. */
export function notify(text, action) {
  const bar = byId('notice');
  const close = () => {
    bar.hidden = true;
  };
  const act = action && button(action.word, () => {
    close();
    action.run();
  });
  bar.replaceChildren(text, ...(act ? [act] : []), button(t('dismiss'), close));
  bar.hidden = false;
  announce(text);
  clearTimeout(timer);
  timer = setTimeout(close, SHOWN_MS);
}
