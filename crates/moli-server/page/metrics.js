// The view of live metrics: asks the server each second while it is shown, and draws the last two minutes.

import { metricsText } from './api.js';
import { button, byId, el, svg } from './dom.js';
import { wordsOf } from './errors.js';
import { number, t } from './i18n.js';
import { buckets, increase, parse, quantile, sum } from './prometheus.js';

const EACH_MS = 1000;
const POINTS = 120;
const WINDOW = 15; // readings between the two that percentiles are taken of
const WIDTH = 240;
const HEIGHT = 48;

const seconds = (value) => (value < 1 ? `${number(value * 1000, 0)} ms` : `${number(value, 2)} s`);
const share = (value) => `${number(value * 100, 1)}%`;
const mebibytes = (value) => `${number(value / 2 ** 20, 0)} MiB`;

// What is drawn: the words of each card, its lines and how their values are written. A line is a function of the newest
// reading, the one before it and the one at the beginning of the window.
const gauge = (name) => ({ now, keep }) => sum(now.samples, name, keep);
const rate = (name) => ({ now, before, keep }) => increase(sum(before.samples, name, keep), sum(now.samples, name, keep))
  / ((now.at - before.at) / 1000);
const percentile = (name, q) => ({ now, far, keep }) => quantile(q, buckets(far.samples, name, keep),
  buckets(now.samples, name, keep));
const cacheShare = ({ now, far, keep }) => {
  const grown = (name) => increase(sum(far.samples, name, keep), sum(now.samples, name, keep));
  return grown('moli_cached_tokens_total') / grown('moli_prompt_tokens_total');
};
const pagesUsed = (reading) => gauge('moli_kv_pages')(reading) - gauge('moli_kv_pages_free')(reading)
  - (gauge('moli_kv_pages_cached')(reading) || 0);

const CARDS = [
  { title: 'metricsRunning', lines: [{ of: gauge('moli_requests_running') }], write: number },
  { title: 'metricsWaiting', lines: [{ of: gauge('moli_requests_waiting') }], write: number },
  { title: 'metricsRate', lines: [{ of: rate('moli_completion_tokens_total') }], write: (value) => number(value, 1) },
  { title: 'metricsPromptRate', lines: [{ of: rate('moli_prompt_tokens_total') }], write: (value) => number(value, 1) },
  {
    title: 'metricsFirst',
    lines: [{ words: 'median', of: percentile('moli_ttft_seconds', 0.5) }, { words: 'p95', of: percentile('moli_ttft_seconds', 0.95) }],
    write: seconds,
  },
  {
    title: 'metricsBetween',
    lines: [{ words: 'median', of: percentile('moli_inter_token_seconds', 0.5) }, { words: 'p95', of: percentile('moli_inter_token_seconds', 0.95) }],
    write: seconds,
  },
  { title: 'metricsCache', lines: [{ of: cacheShare }], write: share, top: 1 },
  {
    title: 'metricsPages',
    lines: [
      { words: 'pagesUsed', of: pagesUsed },
      { words: 'pagesCached', of: gauge('moli_kv_pages_cached') },
      { words: 'pagesFree', of: gauge('moli_kv_pages_free') },
    ],
    write: number,
    top: gauge('moli_kv_pages'),
  },
  // The memory belongs to the process, whichever model is chosen.
  { title: 'metricsMemory', lines: [{ of: ({ now }) => sum(now.samples, 'moli_resident_bytes') }], write: mebibytes },
];

let readings = []; // { at: ms, samples }
let model = ''; // '' for all
let polling = null; // the AbortController of what goes on while the view is shown

/** Shows the view and begins to poll. */
export function show() {
  byId('metrics-view').hidden = false;
  draw();
  poll();
}

/** Hides the view and stops. */
export function hide() {
  byId('metrics-view').hidden = true;
  polling?.abort();
  polling = null;
}

async function poll() {
  polling?.abort();
  const mine = new AbortController();
  polling = mine;
  while (!mine.signal.aborted) {
    // Nobody sees a page in the background.
    if (document.visibilityState === 'visible') {
      try {
        const samples = parse(await metricsText(mine.signal));
        readings.push({ at: performance.now(), samples });
        readings = readings.slice(-POINTS - WINDOW);
      } catch (error) {
        if (mine.signal.aborted) return;
        drawError(error);
        return;
      }
      draw();
    }
    await new Promise((resolve) => setTimeout(resolve, EACH_MS));
  }
}

function drawError(error) {
  const view = byId('metrics-view');
  view.dataset.words = '';
  view.replaceChildren(heading(), el('div', { class: 'error', role: 'alert' },
    ...wordsOf(error).map((words) => el('p', {}, words)), button(t('retry'), poll)));
}

const heading = () => el('h1', {}, t('metrics'));

/** Draws all of it anew, a few dozen elements once a second; but what a person may have in hand, only if it changed. */
export function draw() {
  const view = byId('metrics-view');
  if (view.hidden) return;
  const names = [...new Set((readings.at(-1)?.samples ?? []).map(({ labels }) => labels.model).filter(Boolean))].sort();
  if (!names.includes(model)) model = '';
  const cards = el('div', { class: 'cards' }, ...CARDS.map(cardOf), rejects());
  const words = [document.documentElement.lang, ...names].join('\n');
  if (view.dataset.words === words) {
    view.lastElementChild.replaceWith(cards);
    return;
  }
  view.dataset.words = words;
  view.replaceChildren(heading(), el('p', { class: 'hint' }, t('metricsSpan', { n: WINDOW })),
    ...(names.length > 1 ? [picker(names)] : []), cards);
}

function picker(names) {
  const select = el('select', { 'aria-label': t('model') },
    el('option', { value: '' }, t('metricsAll')), ...names.map((name) => el('option', { value: name }, name)));
  select.value = model;
  select.addEventListener('change', () => {
    model = select.value;
    draw();
  });
  return select;
}

const keep = ({ labels }) => model === '' || labels.model === model;

/** What a line is a function of, at each reading but the first. */
function moments() {
  return readings.map((now, at) => ({ now, before: readings[at - 1], far: readings[Math.max(0, at - WINDOW)], keep })).slice(1);
}

function cardOf({ title, lines, write, top }) {
  const all = moments().slice(-POINTS);
  const drawn = lines.map((line) => ({ ...line, values: all.map(line.of) }));
  const limit = typeof top === 'function' ? all.length > 0 && top(all.at(-1)) : top;
  const latest = ({ values }) => (Number.isFinite(values.at(-1)) ? write(values.at(-1)) : t('nothing'));
  return el('section', { class: 'card' },
    el('h2', {}, t(title)),
    el('dl', {}, ...drawn.map((line, index) => el('div', { class: `key-${index}` },
      line.words ? el('dt', {}, t(line.words)) : null,
      el('dd', {}, latest(line))))),
    sparkline(drawn.map(({ values }) => values), limit));
}

/** Values over time as lines, the newest at the right; gaps where there is none. `top` is the scale's end if it is known. */
function sparkline(series, top) {
  const highest = top || Math.max(1e-9, ...series.flat().filter(Number.isFinite)) * 1.1;
  const paths = series.map((values, index) => {
    let path = '';
    let pen = false;
    values.forEach((value, at) => {
      if (!Number.isFinite(value)) {
        pen = false;
        return;
      }
      const x = WIDTH - ((values.length - 1 - at) * WIDTH) / (POINTS - 1);
      const y = HEIGHT - 1 - (Math.min(value, highest) / highest) * (HEIGHT - 3);
      path += `${pen ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`;
      pen = true;
    });
    return svg('path', { class: `line line-${index}`, d: path });
  });
  return svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', class: 'spark', 'aria-hidden': 'true' },
    ...paths);
}

function rejects() {
  const counts = new Map();
  for (const { name, labels, value } of readings.at(-1)?.samples ?? []) {
    // A request that named no model counts for all of them.
    if (name !== 'moli_rejected_total' || value === 0 || !(model === '' || !labels.model || labels.model === model)) continue;
    counts.set(labels.reason ?? '', (counts.get(labels.reason ?? '') ?? 0) + value);
  }
  const rows = [...counts].sort((a, b) => b[1] - a[1])
    .map(([reason, count]) => el('tr', {}, el('td', {}, reason), el('td', { class: 'right' }, number(count))));
  return el('section', { class: 'card' }, el('h2', {}, t('metricsRejects')), rows.length === 0
    ? el('p', { class: 'hint' }, t('metricsNoRejects'))
    : el('table', {}, el('thead', {}, el('tr', {}, el('th', {}, t('metricsReason')), el('th', { class: 'right' }, t('metricsCount')))),
      el('tbody', {}, ...rows)));
}
