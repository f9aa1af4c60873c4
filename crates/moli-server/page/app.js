// The page: puts the parts together, and what belongs to none of them: theme, language, the list of chats, panels, views.

import { onUnauthorised } from './api.js';
import * as chat from './chat.js';
import { button, byId, el } from './dom.js';
import { setLanguage, t } from './i18n.js';
import { askForKey } from './key.js';
import * as metrics from './metrics.js';
import * as settingsPanel from './settings.js';
import * as state from './state.js';

const wide = matchMedia('(min-width: 60rem)');
const dark = matchMedia('(prefers-color-scheme: dark)');

function setTheme() {
  document.documentElement.dataset.theme = state.settings.theme || (dark.matches ? 'dark' : 'light');
}

function drawWords() {
  setLanguage(state.settings.language);
  settingsPanel.draw();
  chat.draw();
  drawList();
  metrics.draw();
}

function drawList() {
  const list = byId('chat-list');
  // A keyboard stays where it is in the list.
  const row = [...list.children].findIndex((item) => item.contains(document.activeElement));
  const place = row < 0 ? -1 : [...list.children[row].children].indexOf(document.activeElement);
  const rows = state.listChats().map((one) => {
    const title = one.title || t('untitled');
    const open = button(title, () => openChat(one), { 'aria-current': one.id === chat.current().id, title });
    const remove = button(t('delete'), () => chat.remove([one]), { class: 'quiet', 'aria-label': t('deleteChat', { title }) });
    return el('li', {}, open, remove);
  });
  list.replaceChildren(...rows);
  if (row >= 0) (rows[Math.min(row, rows.length - 1)]?.children[place] ?? byId('new-chat')).focus();
}

async function loadModels() {
  await settingsPanel.loadModels();
  chat.drawUnder(); // which shows a part of the model's context
}

function openChat(one) {
  location.hash = '';
  route(); // now: the browser says later that the address has changed, and what is hidden takes no focus
  chat.open(one);
  byId('prompt').focus();
}

/** Opens or closes a panel: 'sidebar' or 'settings'. A narrow screen has room for one. */
function showPanel(id, shown) {
  byId(id).hidden = !shown;
  byId(`toggle-${id}`).setAttribute('aria-expanded', shown);
  if (shown && !wide.matches) showPanel(id === 'sidebar' ? 'settings' : 'sidebar', false);
  if (shown && id === 'settings') {
    settingsPanel.draw();
    byId('system').focus();
  }
}

function togglePanel(id) {
  showPanel(id, byId(id).hidden);
}

/** Escape closes what lies over the page, then stops the answer, then closes the settings. */
function onEscape(event) {
  if (event.key !== 'Escape' || event.isComposing || byId('key-dialog').open) return;
  const over = ['settings', 'sidebar'].find((id) => !wide.matches && !byId(id).hidden);
  if (over) closePanel(over);
  else if (!chat.stop() && !byId('settings').hidden) closePanel('settings');
}

function closePanel(id) {
  showPanel(id, false);
  byId(`toggle-${id}`).focus();
}

function route() {
  const onMetrics = location.hash === '#metrics';
  byId('chat-view').hidden = onMetrics;
  byId('to-chat').setAttribute('aria-current', onMetrics ? 'false' : 'page');
  byId('to-metrics').setAttribute('aria-current', onMetrics ? 'page' : 'false');
  if (onMetrics) metrics.show();
  else metrics.hide();
  if (!wide.matches) showPanel('sidebar', false);
}

function choose(id, apply) {
  byId(id).value = state.settings[id];
  byId(id).addEventListener('change', ({ target }) => {
    state.settings[id] = target.value;
    state.saveSettings();
    apply();
  });
}

state.load();
setTheme();
setLanguage(state.settings.language);
onUnauthorised(askForKey);
chat.start({
  contextOf: settingsPanel.contextOf,
  settingsValid: settingsPanel.valid,
  opened: settingsPanel.draw,
  listChanged: drawList,
  modelUsed: loadModels,
});
settingsPanel.start({ current: chat.current, removeAll: () => chat.remove(state.listChats()) });
choose('theme', setTheme);
choose('language', drawWords);
dark.addEventListener('change', setTheme);
wide.addEventListener('change', () => showPanel('sidebar', wide.matches));
addEventListener('hashchange', route);
addEventListener('keydown', onEscape);
byId('new-chat').addEventListener('click', () => openChat(state.newChat()));
for (const id of ['sidebar', 'settings']) byId(`toggle-${id}`).addEventListener('click', () => togglePanel(id));
byId('close-settings').addEventListener('click', () => closePanel('settings'));
chat.open(state.openedChat() ?? state.newChat());
showPanel('sidebar', wide.matches);
byId('toggle-settings').setAttribute('aria-expanded', false);
route();
byId('prompt').focus();
loadModels();
