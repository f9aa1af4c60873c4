// Building the page's elements. Text goes in as text nodes only: nothing in this page is ever parsed as HTML.

import { t } from './i18n.js';

/**
 * An element of the page. `props` are attributes, `class`, and listeners under `on`; a value that is null, undefined or
 * false leaves its attribute out. Children are nodes or strings; null is skipped.
 */
export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for a shape of SVG. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', tag), props, children);
}

// Plain loops: a table of an answer has thousands of cells.
function fill(node, props, children) {
  for (const name of Object.keys(props)) {
    const value = props[name];
    if (name === 'on') for (const event of Object.keys(value)) node.addEventListener(event, value[event]);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

/** The element of index.html with this id. */
export const byId = (id) => document.getElementById(id);

/** A plain button with a word on it. */
export function button(text, click, props = {}) {
  return el('button', { type: 'button', on: { click }, ...props }, text);
}

/** A button that copies what `text()` gives, and says so. */
export function copyButton(text) {
  const node = button(t('copy'), async () => {
    node.textContent = t((await copyText(text())) ? 'copied' : 'notCopied');
  });
  return node;
}

/** Copies text; the old way too, since pages that come over plain HTTP from another computer have no clipboard object. */
async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Refused, for instance without focus: the old way may still do.
    }
  }
  const area = el('textarea', { class: 'hidden', 'aria-hidden': 'true' });
  const focused = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand('copy');
  area.remove();
  focused?.focus();
  return copied;
}
