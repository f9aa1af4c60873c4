// The conversation: which chat is open, what is being answered, and what a person does to it.

import { receive } from './answer.js';
import { byId, el } from './dom.js';
import { number, t } from './i18n.js';
import { Answer, Question, fit, isComposing } from './message.js';
import { announce, notify } from './notice.js';
import { paced } from './paced.js';
import * as state from './state.js';

const SAVE_MS = 2000; // between two writes of an answer that is growing
const TITLE = 60; // characters
const SPOKEN = 2000; // characters of an answer that a screen reader is given at once

const running = new Map(); // by chat's id: { asked: the chat, abort, message, progress }
const homeless = new WeakSet(); // chats of which we have said that there is no room for them
let chat; // the open one
let views = []; // of its messages
let hooks; // what start() was given

/**
 * Sets the view up. `contextOf(model)` is a number of tokens or undefined, `settingsValid()` whether a question may be
 * asked; called are `opened()` for another chat, `listChanged()`, and `modelUsed()` when one that was not loaded has answered.
 */
export function start(given) {
  hooks = given;
  const prompt = byId('prompt');
  prompt.addEventListener('keydown', (event) => {
    if (isComposing(event)) return;
    if (event.key === 'Enter' && !event.shiftKey) {
      event.preventDefault();
      send();
    } else if (event.key === 'ArrowUp' && prompt.value === '') {
      event.preventDefault();
      views.findLast((view) => view instanceof Question)?.edit();
    }
  });
  prompt.addEventListener('input', () => fit(prompt));
  byId('send').addEventListener('click', send);
  byId('stop').addEventListener('click', stop);
  addEventListener('pagehide', () => {
    // The browser ends the requests itself, which would look like a lost connection.
    for (const { asked, abort } of running.values()) {
      keep(asked);
      abort.abort();
    }
  });
  state.onOtherTab((id) => {
    if (id === chat.id && !running.has(id)) open(state.chatOf(id) ?? state.newChat());
    else hooks.listChanged();
  });
}

export const current = () => chat;

/** Shows a chat. */
export function open(other) {
  chat = other;
  state.setOpened(chat.id);
  draw();
  scrollDown();
  hooks.opened();
  hooks.listChanged();
}

/** Builds the open chat's messages anew, after a change of the messages or of the language. */
export function draw() {
  const last = chat.messages.length - 1;
  views = chat.messages.map((message, at) => (message.role === 'user'
    ? new Question(message, { ask: (text) => askFrom(at, text) })
    : new Answer(message, { retry: at === last ? () => askFrom(at - 1) : null })));
  const welcome = el('div', { class: 'welcome' }, el('h1', {}, t('welcome')), el('p', {}, t('welcomeWhere')));
  byId('messages').replaceChildren(...(views.length > 0 ? views.map((view) => view.node) : [welcome]));
  drawUnder();
}

/** Stops the open chat's answer; false if there is none. */
export function stop() {
  const answering = running.get(chat.id);
  answering?.abort.abort();
  return answering !== undefined;
}

/** Deletes chats, and offers to bring them back. */
export function remove(chats) {
  for (const { id } of chats) {
    running.get(id)?.abort.abort();
    state.removeChat(id);
  }
  const opened = chats.includes(chat) ? chat : null;
  if (opened) open(state.newChat());
  else hooks.listChanged();
  notify(t('deleted'), {
    word: t('undo'),
    run: () => {
      chats.forEach(save);
      if (opened) open(opened);
      else hooks.listChanged();
    },
  });
}

function send() {
  const prompt = byId('prompt');
  if (prompt.value.trim() === '' || running.has(chat.id)) return;
  if (ask(prompt.value, chat)) {
    prompt.value = '';
    fit(prompt);
  }
}

/** Asks the question at place `at` anew, in other words if there are some. Later turns stay, in the chat as it was. */
function askFrom(at, text = chat.messages[at].content) {
  if (!hooks.settingsValid()) return;
  stop();
  if (at + 2 < chat.messages.length) {
    chat = state.forkChat(chat, at);
    notify(t('forked'));
  } else {
    chat.messages.length = at;
  }
  ask(text, chat);
}

/** Adds a question and has it answered; false if the settings forbid it. */
function ask(text, asked) {
  if (!hooks.settingsValid()) return false;
  if (asked.title === '' || asked.messages.length === 0) asked.title = text.trim().slice(0, TITLE);
  asked.messages.push({ role: 'user', content: text });
  asked.messages.push({ role: 'assistant', content: '', reasoning: '', state: 'running', model: state.settings.model });
  asked.updated = Date.now();
  save(asked);
  open(asked);
  // A keyboard on the screen would hide the answer.
  if (matchMedia('(pointer: fine)').matches) byId('prompt').focus();
  answer(asked);
  return true;
}

async function answer(asked) {
  const message = asked.messages[asked.messages.length - 1];
  const answering = { asked, abort: new AbortController(), message, progress: null };
  running.set(asked.id, answering);
  drawUnder();
  const show = paced(() => {
    if (running.get(asked.id) === answering) drawAnswer(asked, message);
  });
  let saved = performance.now();
  await receive(asked, message, state.settings, answering.abort.signal, (progress) => {
    if (answering.progress === null) announce(t('answering'));
    answering.progress = progress;
    if (performance.now() - saved > SAVE_MS) {
      saved = performance.now();
      keep(asked);
    }
    show();
  });
  // Another answer may have taken this one's place.
  if (running.get(asked.id) === answering) running.delete(asked.id);
  keep(asked);
  if (message.stats && hooks.contextOf(message.model) === undefined) hooks.modelUsed();
  drawAnswer(asked, message);
  if (asked !== chat) return;
  if (message.state === 'done') announce(t('answered', { text: message.content.slice(0, SPOKEN) }));
  else if (message.state === 'stopped') announce(t('stopped'));
}

function drawAnswer(asked, message) {
  if (asked !== chat) return;
  const scroll = byId('scroll');
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 48;
  views[chat.messages.indexOf(message)]?.update();
  if (atEnd) scrollDown();
  drawUnder();
}

/** The buttons and numbers below the text field. */
export function drawUnder() {
  const answering = running.get(chat.id);
  const focused = document.activeElement;
  byId('send').hidden = answering !== undefined;
  byId('stop').hidden = answering === undefined;
  if (focused === byId('stop') && !answering) byId('prompt').focus();

  const { pieces, firstAt, lastAt } = answering?.progress ?? { pieces: 0 };
  // The server tells tokens at the end only. Until then a piece counts as one, hence the "about".
  const rate = pieces > 4 ? ((pieces - 1) * 1000) / (lastAt - firstAt) : NaN;
  byId('rate').textContent = Number.isFinite(rate) ? t('rateNow', { rate: number(rate, 1) }) : '';

  const last = chat.messages[chat.messages.length - 1];
  const used = (last?.stats?.prompt ?? NaN) + (last?.stats?.completion ?? NaN);
  const all = hooks.contextOf(last?.model);
  const meter = byId('context');
  meter.hidden = !(used >= 0 && all > 0);
  if (meter.hidden) return;
  meter.setAttribute('aria-valuemin', 0);
  meter.setAttribute('aria-valuemax', all);
  meter.setAttribute('aria-valuenow', used);
  const words = t('contextOf', { used: number(used), all: number(all) });
  meter.setAttribute('aria-valuetext', words);
  byId('context-words').textContent = words;
  byId('context-bar').style.width = `${Math.min(100, (100 * used) / all)}%`;
}

/** Saves a chat whose answer goes on; one that was deleted meanwhile stays so. */
function keep(asked) {
  if (state.chatOf(asked.id) === asked) save(asked);
}

function save(saved) {
  if (state.saveChat(saved) || homeless.has(saved)) return;
  homeless.add(saved);
  notify(t('notStored'));
}

function scrollDown() {
  const scroll = byId('scroll');
  scroll.scrollTop = scroll.scrollHeight;
}
