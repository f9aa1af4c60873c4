// The dialog that asks for an API key.

import { setApiKey } from './api.js';
import { byId } from './dom.js';
import { t } from './i18n.js';

let asking = null;

/** Asks for a key; resolves to whether one was given. `refused` is the key that the server did not take, if any. */
export function askForKey(refused) {
  asking ??= ask(refused).finally(() => {
    asking = null;
  });
  return asking;
}

function ask(refused) {
  const dialog = byId('key-dialog');
  const field = byId('key');
  const words = byId('key-words');
  words.textContent = t(refused ? 'keyRefused' : 'keyNeeded');
  field.value = '';
  return new Promise((resolve) => {
    byId('key-cancel').onclick = () => dialog.close('');
    dialog.querySelector('form').onsubmit = (event) => {
      event.preventDefault();
      const key = field.value.trim();
      // What a header can carry.
      if (/^[!-~]+$/.test(key)) {
        setApiKey(key);
        dialog.close('given');
      } else {
        words.textContent = t('keyCharacters');
        field.focus();
      }
    };
    dialog.onclose = () => {
      field.value = '';
      resolve(dialog.returnValue === 'given');
    };
    dialog.returnValue = '';
    dialog.showModal();
    field.focus();
  });
}
