// One message of a conversation as elements.

import { button, copyButton, el } from './dom.js';
import { wordsOf } from './errors.js';
import { number, t } from './i18n.js';
import { MarkdownView } from './markdown.js';

/** Whether this key press belongs to an input method, which uses Enter and Escape itself. */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** A question: its text, and buttons that edit it, ask it again and copy it. `actions`: { ask(text) }. */
export class Question {
  #message;
  #actions;

  constructor(message, actions) {
    this.#message = message;
    this.#actions = actions;
    this.node = el('article', { class: 'message question', 'aria-label': t('you') });
    this.#show();
  }

  #show() {
    this.node.replaceChildren(
      el('h3', {}, t('you')),
      el('div', { class: 'plain' }, this.#message.content),
      el('div', { class: 'actions' },
        button(t('edit'), () => this.edit()),
        button(t('askAgain'), () => this.#actions.ask(this.#message.content)),
        copyButton(() => this.#message.content)));
  }

  /** Opens the text for editing: Enter asks, Escape leaves it as it was. */
  edit() {
    const area = el('textarea', { 'aria-label': t('editMessage'), rows: 3 });
    area.value = this.#message.content;
    const cancel = () => {
      this.#show();
      this.node.querySelector('button').focus();
    };
    const ask = () => {
      if (area.value.trim() !== '') this.#actions.ask(area.value);
    };
    area.addEventListener('keydown', (event) => {
      if (isComposing(event)) return;
      if (event.key === 'Enter' && !event.shiftKey) {
        event.preventDefault();
        ask();
      } else if (event.key === 'Escape') {
        event.stopPropagation();
        cancel();
      }
    });
    area.addEventListener('input', () => fit(area));
    this.node.replaceChildren(
      el('h3', {}, t('you')),
      area,
      el('div', { class: 'actions' }, button(t('send'), ask), button(t('cancel'), cancel)));
    fit(area);
    area.focus();
  }
}

/** An answer. `update` shows what has changed in its message. `actions`: { retry }. */
export class Answer {
  #message;
  #actions;
  #summary = el('summary');
  #reasoningText = document.createTextNode('');
  #reasoning = el('details', { class: 'reasoning', hidden: true },
    this.#summary, el('div', { class: 'plain' }, this.#reasoningText));
  #text = el('div', { class: 'markdown' });
  #markdown = new MarkdownView(this.#text);
  #end = el('div', { class: 'end' });

  constructor(message, actions) {
    this.#message = message;
    this.#actions = actions;
    const name = message.model || t('model');
    this.node = el('article', { class: 'message answer', 'aria-label': name },
      el('h3', {}, name), this.#reasoning, this.#text, this.#end);
    this.update();
  }

  update() {
    const { content, reasoning, state } = this.#message;
    const shown = this.#reasoningText.length;
    if (reasoning.length > shown) this.#reasoningText.appendData(reasoning.slice(shown));
    this.#reasoning.hidden = reasoning === '';
    this.#summary.textContent = this.#reasoningWords();
    this.#markdown.set(content);
    this.node.setAttribute('aria-busy', state === 'running');
    if (state !== 'running') this.#showEnd();
    else if (content === '' && reasoning === '') this.#end.replaceChildren(el('p', { class: 'note' }, t('waiting')));
    else this.#end.replaceChildren();
  }

  #reasoningWords() {
    const { content, reasoningMs, state } = this.#message;
    if (state === 'running' && content === '') return t('thinking');
    return reasoningMs === undefined ? t('reasoning') : t('reasoningTook', { seconds: number(reasoningMs / 1000, 1) });
  }

  #showEnd() {
    const { content, error, state, stats } = this.#message;
    const parts = [];
    if (state === 'failed') {
      parts.push(el('div', { class: 'error', role: 'alert' }, ...wordsOf(error).map((words) => el('p', {}, words))));
    }
    const note = this.#note();
    if (note) parts.push(el('p', { class: 'note' }, note));
    parts.push(el('div', { class: 'actions' },
      this.#actions.retry && button(t('retry'), this.#actions.retry),
      content === '' ? null : copyButton(() => content)));
    if (stats) parts.push(el('p', { class: 'stats' }, statsWords(stats)));
    this.#end.replaceChildren(...parts);
  }

  #note() {
    const { finish, state } = this.#message;
    if (state === 'stopped') return t('stopped');
    if (finish === 'length') return t('endedByLength');
    return state === 'done' && finish && finish !== 'stop' ? t('endedByOther', { reason: finish }) : null;
  }
}

function statsWords({ completion, rate, ttftMs, queuedMs, cached, prompt }) {
  const words = [];
  const seconds = (ms) => number(ms / 1000, 2);
  if (completion !== undefined) words.push(t('statsTokens', { n: number(completion) }));
  if (rate !== undefined) words.push(t('statsRate', { rate: number(rate, 1) }));
  if (ttftMs !== undefined) words.push(t('statsFirst', { seconds: seconds(ttftMs) }));
  // A wait that nobody notices is not worth words.
  if (queuedMs > 100) words.push(t('statsQueued', { seconds: seconds(queuedMs) }));
  if (cached !== undefined && prompt !== undefined) words.push(t('statsCached', { cached: number(cached), n: number(prompt) }));
  return words.join(' · ');
}

/** Makes a text area as high as its text; the style sheet sets the limit. */
export function fit(area) {
  area.style.height = 'auto';
  area.style.height = `${area.scrollHeight + 2}px`;
}
