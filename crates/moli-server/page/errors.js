// An error of the API in words.

import { hasWords, number, t } from './i18n.js';

/** The sentences of an error (ApiError, or what was stored of one): what happened, what the server says, when to try again. */
export function wordsOf(error) {
  const words = [what(error)];
  if (error.message) words.push(error.message);
  if (error.retryAfter !== undefined) words.push(t('retryAfter', { n: number(error.retryAfter) }));
  return words;
}

function what({ kind, status }) {
  switch (kind) {
    case 'network':
      return t('errorNetwork');
    case 'lost':
      return t('errorLost');
    case 'stream':
      return t('errorStream');
    case 'http':
      return hasWords(`error${status}`) ? t(`error${status}`) : t('errorOther', { status });
    default:
      return t('errorProtocol');
  }
}
