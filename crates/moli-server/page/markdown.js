// Markdown to elements: the blocks. An answer is hostile text, so this makes elements and text nodes and nothing else, in
// time that grows with the text's length only, and never nests deeper than a fixed number of elements.
//
// It is the Markdown that models write, not all of CommonMark: paragraphs keep their line breaks, a list item goes on with
// lines that are indented by two columns or more, and there is no HTML, no indented code and no link definition.

import { copyButton, el } from './dom.js';
import { inline } from './markdown-inline.js';

const MAX_DEPTH = 8; // of quotes and lists in each other
const MAX_COLUMNS = 64; // of a table; one with more is shown as text
const MAX_PIECES = 2000; // table rows or list items of one block, what follows is a next block: browsers lay out huge ones slowly

/** A growing text as elements: `set` rebuilds its end only, for the blocks before can't change any more. */
export class MarkdownView {
  #root;
  #settled = 0; // where the end that may change begins in the text
  #open = 0; // elements of it
  #length = 0;

  constructor(root) {
    this.#root = root;
  }

  /** Shows `text`, which is what it was plus more at its end, or another text that is shorter. */
  set(text) {
    if (text.length < this.#length) {
      this.#root.replaceChildren();
      this.#settled = 0;
      this.#open = 0;
    }
    this.#length = text.length;
    const tail = this.#settled === 0 ? text : text.slice(this.#settled);
    const { lines, starts } = splitLines(tail);
    const fragment = document.createDocumentFragment();
    const begun = blocks(lines, fragment, 0);
    for (; this.#open > 0; this.#open -= 1) this.#root.lastElementChild.remove();
    this.#root.append(fragment);
    // The last block may grow. One that begins in the line that has not ended may turn out to be a part of that before.
    let last = begun.length - 1;
    if (last > 0 && begun[last] === lines.length - 1) last -= 1;
    if (last < 0) return;
    this.#open = begun.length - last;
    this.#settled += starts[begun[last]];
  }
}

/** The lines of a text and the offset of each. */
function splitLines(text) {
  const lines = [];
  const starts = [];
  const end = /\r\n|\n|\r/g;
  let from = 0;
  for (let match = end.exec(text); match; match = end.exec(text)) {
    lines.push(text.slice(from, match.index));
    starts.push(from);
    from = end.lastIndex;
  }
  lines.push(text.slice(from));
  starts.push(from);
  return { lines, starts };
}

/** Appends the blocks of these lines, one element each; returns the line at which each begins. */
function blocks(lines, parent, depth) {
  const begun = [];
  for (let at = 0; at < lines.length; ) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    begun.push(at);
    at = block(lines, at, parent, depth);
  }
  return begun;
}

/** Appends the block that begins at line `at`; returns the line after it. */
function block(lines, at, parent, depth) {
  const line = lines[at];
  const fence = fenceOf(line);
  if (fence) return code(lines, at, fence, parent);
  const heading = headingOf(line);
  if (heading) {
    // The page has headings of its own above those of an answer.
    const node = el(`h${Math.min(heading.level + 2, 6)}`);
    inline(heading.text, node);
    parent.append(node);
    return at + 1;
  }
  if (isRule(line)) {
    parent.append(el('hr'));
    return at + 1;
  }
  if (depth < MAX_DEPTH) {
    if (isQuote(line)) return quote(lines, at, parent, depth);
    if (markerOf(line)) return list(lines, at, parent, depth);
  }
  if (isTable(lines, at)) return table(lines, at, parent);
  return paragraph(lines, at, parent, depth);
}

function paragraph(lines, at, parent, depth) {
  const from = at;
  at += 1;
  while (at < lines.length && !isBlank(lines[at]) && !interrupts(lines, at, depth)) at += 1;
  const node = el('p');
  inline(lines.slice(from, at).map((line) => line.trim()).join('\n'), node);
  parent.append(node);
  return at;
}

function interrupts(lines, at, depth) {
  const line = lines[at];
  return fenceOf(line) || headingOf(line) || isRule(line) || isTable(lines, at)
    || (depth < MAX_DEPTH && (isQuote(line) || markerOf(line)));
}

function code(lines, at, fence, parent) {
  const inside = [];
  let closed = false;
  for (at += 1; at < lines.length && !closed; at += 1) {
    closed = closes(lines[at], fence);
    if (!closed) inside.push(dedent(lines[at], fence.indent));
  }
  const text = inside.join('\n');
  parent.append(el('figure', { class: 'code' },
    el('figcaption', {}, el('span', {}, fence.language), copyButton(() => text)),
    el('pre', {}, el('code', {}, text))));
  return at;
}

function quote(lines, at, parent, depth) {
  const inside = [];
  for (; at < lines.length && isQuote(lines[at]); at += 1) {
    const line = lines[at].trimStart();
    inside.push(line.slice(line[1] === ' ' ? 2 : 1));
  }
  const node = el('blockquote');
  blocks(inside, node, depth + 1);
  parent.append(node);
  return at;
}

function list(lines, at, parent, depth) {
  const first = markerOf(lines[at]);
  const node = first.ordered ? el('ol', { start: first.number === 1 ? null : first.number }) : el('ul');
  for (let items = 0; at < lines.length && items < MAX_PIECES; items += 1) {
    const marker = markerOf(lines[at]);
    if (!marker || marker.kind !== first.kind || marker.indent > first.indent + 1 || isRule(lines[at])) break;
    const inside = [lines[at].slice(marker.width)];
    at += 1;
    let after = at; // behind the last line with something on it
    for (; at < lines.length; at += 1) {
      const blank = isBlank(lines[at]);
      if (!blank && indentOf(lines[at]) < marker.indent + 2) break;
      // Not up to where the item's text begins: models indent less, and code would lose what sets its lines apart.
      inside.push(dedent(lines[at], marker.indent + 2));
      if (!blank) after = at + 1;
    }
    inside.length -= at - after;
    const item = el('li');
    blocks(inside, item, depth + 1);
    node.append(item);
    if (at === lines.length) break;
  }
  parent.append(node);
  return at;
}

function table(lines, at, parent) {
  const head = cellsOf(lines[at]);
  const aligns = cellsOf(lines[at + 1]).map(alignOf);
  const row = (tag, cells) => el('tr', {}, ...cells.slice(0, head.length).map((text, column) => {
    const cell = el(tag, { class: aligns[column] });
    inline(text, cell);
    return cell;
  }));
  const body = el('tbody');
  const header = row('th', head);
  at += 2;
  for (let rows = 0; at < lines.length && rows < MAX_PIECES; rows += 1, at += 1) {
    if (isBlank(lines[at]) || !lines[at].includes('|')) break;
    body.append(row('td', cellsOf(lines[at])));
  }
  parent.append(el('div', { class: 'table' }, el('table', {}, el('thead', {}, header), body)));
  return at;
}

// What a line is.

const isBlank = (line) => !/\S/.test(line);

/** Columns of white space at the beginning; a tab goes to the next multiple of four. */
function indentOf(line) {
  let columns = 0;
  for (const char of line) {
    if (char === ' ') columns += 1;
    else if (char === '\t') columns += 4 - (columns % 4);
    else break;
  }
  return columns;
}

/** The line without its first `columns` columns of white space, or as many as there are. */
function dedent(line, columns) {
  let at = 0;
  for (let seen = 0; seen < columns && at < line.length; at += 1) {
    if (line[at] === ' ') seen += 1;
    else if (line[at] === '\t') seen += 4 - (seen % 4);
    else break;
  }
  return line.slice(at);
}

function fenceOf(line) {
  const indent = indentOf(line);
  const text = line.trimStart();
  const char = text[0];
  if (char !== '`' && char !== '~') return null;
  const length = runLength(text, char);
  const info = text.slice(length).trim();
  // A line of code in backticks is a paragraph.
  if (length < 3 || (char === '`' && info.includes('`'))) return null;
  return { char, length, indent, language: info.slice(0, 40) };
}

function closes(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text[0] === fence.char && runLength(text, fence.char) === text.length;
}

function runLength(text, char) {
  let length = 0;
  while (text[length] === char) length += 1;
  return length;
}

function headingOf(line) {
  const text = line.trim();
  const level = runLength(text.slice(0, 7), '#');
  if (level < 1 || level > 6 || (text.length > level && !/\s/.test(text[level]))) return null;
  let end = text.length;
  while (end > level && text[end - 1] === '#') end -= 1;
  // Closing marks stand apart from the text: C# keeps its own.
  if (end > level && !/\s/.test(text[end - 1])) end = text.length;
  return { level, text: text.slice(level, end).trim() };
}

function isRule(line) {
  const char = line.trimStart()[0];
  if (char !== '-' && char !== '*' && char !== '_') return false;
  let count = 0;
  for (const other of line) {
    if (other === char) count += 1;
    else if (other !== ' ' && other !== '\t') return false;
  }
  return count >= 3;
}

const isQuote = (line) => line.trimStart()[0] === '>';

/** A list's marker: its kind, its column, and where the item's text begins. */
function markerOf(line) {
  const match = /^([ \t]*)(?:([-*+])|(\d{1,9})([.)]))(?:([ \t]{1,4})|$)/.exec(line);
  if (!match) return null;
  const [whole, , bullet, number, end] = match;
  const ordered = number !== undefined;
  return { ordered, number: Number(number), kind: ordered ? end : bullet, indent: indentOf(line), width: whole.length };
}

function isTable(lines, at) {
  if (!lines[at].includes('|') || at + 1 === lines.length) return false;
  const next = lines[at + 1];
  if (!next.includes('-') || !/^[|:\-\s]+$/.test(next)) return false;
  const columns = cellsOf(next);
  return columns.length <= MAX_COLUMNS && columns.every((cell) => /^:?-+:?$/.test(cell))
    && cellsOf(lines[at]).length === columns.length;
}

/** A row's cells. A bar in a cell is written `\|`. */
function cellsOf(line) {
  const cells = [];
  let cell = '';
  const text = line.trim();
  for (let at = text[0] === '|' ? 1 : 0; at < text.length; at += 1) {
    if (text[at] === '\\' && text[at + 1] === '|') {
      cell += '|';
      at += 1;
    } else if (text[at] === '|') {
      cells.push(cell.trim());
      cell = '';
    } else {
      cell += text[at];
    }
  }
  if (cell.trim() !== '') cells.push(cell.trim());
  return cells;
}

function alignOf(cell) {
  if (!cell.endsWith(':')) return null;
  return cell.startsWith(':') ? 'center' : 'right';
}
