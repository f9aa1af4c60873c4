// What the page remembers: settings and chats in localStorage, which chat is open in sessionStorage. What is read back is
// checked, since other versions of this page, and people, write there too.

import { local, session } from './storage.js';

const CHAT = 'moli.chat.';
const SETTINGS = 'moli.settings';
const OPEN = 'moli.open';
const MAX_CHATS = 100;
// Browsers give an origin five million UTF-16 units.
const MAX_UNITS = 4_000_000;

const SAMPLING = ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed'];

/**
 * A chat is { id, title, updated, system, messages }. A message is { role: 'user', content } or
 * { role: 'assistant', content, reasoning, state, model, finish?, error?, stats?, reasoningMs? }, whose state is 'running',
 * 'done', 'stopped' or 'failed'.
 */
const chats = new Map();
const sizes = new Map(); // of what is stored, UTF-16 units by chat

/** { theme, language, model, system, sampling: { temperature, … } }; '' or a missing number: nothing chosen. */
export const settings = { theme: '', language: '', model: '', system: '', sampling: {} };

/** Reads all of it. */
export function load() {
  const stored = parse(local.get(SETTINGS)) ?? {};
  for (const name of ['theme', 'language', 'model', 'system']) {
    if (typeof stored[name] === 'string') settings[name] = stored[name];
  }
  for (const name of SAMPLING) {
    if (typeof stored.sampling?.[name] === 'number') settings.sampling[name] = stored.sampling[name];
  }
  for (const key of local.keys()) {
    if (key.startsWith(CHAT)) readChat(key);
  }
}

function readChat(key) {
  const text = local.get(key);
  const chat = parse(text);
  if (!isChat(chat) || CHAT + chat.id !== key) return;
  for (const message of chat.messages) {
    // Nobody is receiving this answer any more.
    if (message.state === 'running') message.state = 'stopped';
  }
  chats.set(chat.id, chat);
  sizes.set(chat.id, text.length);
}

/** Calls back when another tab changes a chat, with its id. */
export function onOtherTab(changed) {
  addEventListener('storage', ({ key }) => {
    if (!key?.startsWith(CHAT)) return;
    const id = key.slice(CHAT.length);
    chats.delete(id);
    sizes.delete(id);
    readChat(key);
    changed(id);
  });
}

export function saveSettings() {
  local.set(SETTINGS, JSON.stringify(settings));
}

/** An empty chat. It is stored with its first message. */
export function newChat() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  const id = [Date.now(), ...random].map((part) => part.toString(36)).join('-');
  return { id, title: '', updated: Date.now(), system: settings.system, messages: [] };
}

/** A new chat with the first `count` messages of another one. */
export function forkChat(chat, count) {
  return { ...newChat(), title: chat.title, system: chat.system, messages: structuredClone(chat.messages.slice(0, count)) };
}

/** The chats, the one that changed last first. */
export const listChats = () => [...chats.values()].sort((a, b) => b.updated - a.updated);

export const chatOf = (id) => chats.get(id);

/** Stores a chat; the oldest others make room. False: there is no room for it. */
export function saveChat(chat) {
  if (chat.messages.length === 0) return true;
  chats.set(chat.id, chat);
  const text = JSON.stringify(chat);
  sizes.set(chat.id, text.length);
  const others = listChats().filter((other) => other !== chat);
  const units = () => [...sizes.values()].reduce((sum, size) => sum + size, 0);
  while (others.length > 0 && (chats.size > MAX_CHATS || units() > MAX_UNITS)) removeChat(others.pop().id);
  while (!local.set(CHAT + chat.id, text)) {
    if (others.length === 0) return false;
    removeChat(others.pop().id);
  }
  return true;
}

export function removeChat(id) {
  chats.delete(id);
  sizes.delete(id);
  local.remove(CHAT + id);
}

/** The chat that this tab had open. */
export const openedChat = () => chats.get(session.get(OPEN));

export function setOpened(id) {
  session.set(OPEN, id);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function isChat(chat) {
  return typeof chat?.id === 'string' && typeof chat.title === 'string' && typeof chat.updated === 'number'
    && typeof chat.system === 'string' && Array.isArray(chat.messages) && chat.messages.every(isMessage);
}

function isMessage(message) {
  if (typeof message?.content !== 'string') return false;
  return message.role === 'user' || (message.role === 'assistant' && typeof message.reasoning === 'string'
    && ['running', 'done', 'stopped', 'failed'].includes(message.state)
    && (message.stats === undefined || Object.values(message.stats ?? [null]).every((value) => typeof value === 'number'))
    && (message.error === undefined || typeof message.error?.kind === 'string'));
}
