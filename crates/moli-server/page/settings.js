// The panel of settings: the system prompt, and how tokens are chosen. Also the model, which is picked above the chat.

import { ApiError, apiKey, forgetApiKey, models as fetchModels } from './api.js';
import { byId, el } from './dom.js';
import { wordsOf } from './errors.js';
import { number, t } from './i18n.js';
import { notify } from './notice.js';
import { saveChat, saveSettings, settings } from './state.js';

const FIELDS = [
  { name: 'temperature', min: 0, max: 2, step: 0.1 },
  { name: 'top_p', min: 0, max: 1, step: 0.05 },
  { name: 'top_k', min: 0, max: 1_000_000, step: 1 },
  { name: 'min_p', min: 0, max: 1, step: 0.01 },
  { name: 'max_tokens', min: 1, max: 1_000_000, step: 1 },
  { name: 'seed', min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
];

let models = [];
let currentChat;

/** Sets the panel up; `current` gives the open chat. */
export function start({ current, removeAll }) {
  currentChat = current;
  byId('system').addEventListener('input', ({ target }) => {
    currentChat().system = target.value;
    settings.system = target.value;
    saveChat(currentChat());
    saveSettings();
  });
  byId('model').addEventListener('change', ({ target }) => {
    settings.model = target.value;
    saveSettings();
  });
  byId('forget-key').addEventListener('click', () => {
    forgetApiKey();
    draw();
    notify(t('keyForgotten'));
  });
  byId('delete-all').addEventListener('click', removeAll);
}

/** Writes the fields, after a change of the language or of the open chat, or when the panel opens. */
export function draw() {
  byId('system').value = currentChat().system;
  byId('forget-key').hidden = apiKey() === null;
  byId('sampling').replaceChildren(byId('sampling').querySelector('legend'), ...FIELDS.map(fieldOf));
  drawModels();
}

/** Whether all fields hold what the server may be asked for; otherwise shows the one that doesn't. */
export function valid() {
  const wrong = byId('sampling').querySelector('[aria-invalid=true]');
  if (!wrong) return true;
  byId('settings').hidden = false;
  notify(t('fixSettings'));
  wrong.focus();
  return false;
}

/** Asks the server for its models. */
export async function loadModels() {
  try {
    models = await fetchModels();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    models = [];
    notify(wordsOf(error).join(' '), { word: t('retry'), run: loadModels });
  }
  if (!models.some(({ id }) => id === settings.model)) {
    settings.model = (models.find(({ loaded }) => loaded) ?? models[0])?.id ?? '';
  }
  drawModels();
}

/** How many tokens this model's context has, or undefined. */
export const contextOf = (id) => models.find((model) => model.id === id)?.context ?? undefined;

function drawModels() {
  const options = models.map(({ id, loaded }) => el('option', { value: id },
    loaded === false ? t('modelNotLoaded', { name: id }) : id));
  const none = el('option', { value: '' }, t('noModels'));
  byId('model').replaceChildren(...(options.length > 0 ? options : [none]));
  byId('model').value = settings.model;
}

function fieldOf({ name, min, max, step }) {
  const id = `field-${name}`;
  const whole = step === 1;
  const problem = el('span', { class: 'problem', id: `${id}-problem` });
  const input = el('input', { id, type: 'text', inputmode: 'decimal', autocomplete: 'off', 'aria-describedby': problem.id });
  input.value = settings.sampling[name] ?? '';
  const move = (direction) => {
    const next = Math.min(max, Math.max(min, (Number(input.value) || 0) + direction * step));
    input.value = Number(next.toFixed(4));
    read();
  };
  const read = () => {
    const text = input.value.trim();
    const value = Number(text);
    const good = text === '' || (value >= min && value <= max && (!whole || Number.isInteger(value)));
    input.setAttribute('aria-invalid', !good);
    problem.textContent = good ? '' : t(whole ? 'notWhole' : 'notInRange', { min: number(min), max: number(max) });
    if (!good) return;
    if (text === '') delete settings.sampling[name];
    else settings.sampling[name] = value;
    saveSettings();
  };
  input.addEventListener('input', read);
  input.addEventListener('keydown', (event) => {
    if (event.key !== 'ArrowUp' && event.key !== 'ArrowDown') return;
    event.preventDefault();
    move(event.key === 'ArrowUp' ? 1 : -1);
  });
  return el('div', { class: 'field' }, el('label', { for: id }, t(name)), input, problem);
}
