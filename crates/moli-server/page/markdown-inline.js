// Markdown to elements: what stands in a line. Three passes, each linear in the text: cut it into pieces, pair the marks of
// emphasis, make the elements.
//
// Marks pair a little more freely than in CommonMark, whose rule for punctuation leaves `**注意：**请` without its bold.

import { el } from './dom.js';

const MAX_DEPTH = 16; // of emphasis and links in each other; deeper marks vanish, their text stays
const SCHEMES = ['http:', 'https:', 'mailto:'];
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}_]/u;

/** Appends a line's text to `parent` as text, emphasis, code, links and line breaks. */
export function inline(text, parent) {
  const pieces = cut(text);
  pair(pieces);
  build(pieces, parent);
}

/** The address if the page may link to it, else null. */
function allowed(address) {
  try {
    const url = new URL(address);
    return SCHEMES.includes(url.protocol) ? url.href : null;
  } catch {
    return null; // a relative one means nothing in an answer
  }
}

// Pieces are strings, and objects: {code}, {br}, {url}, {open, href}, {close}, and marks {mark, count, canOpen, canClose}.

function cut(text) {
  const pieces = [];
  const brackets = []; // those opened: their places in `pieces`
  const special = /[\\`*_~[\]!<\n]|https?:\/\//g;
  let ticks = null;
  let plain = 0; // where text begins that is in no piece yet
  const flush = (to) => {
    if (to > plain) pieces.push(text.slice(plain, to));
  };
  const add = (from, to, piece) => {
    flush(from);
    pieces.push(piece);
    plain = to;
    special.lastIndex = to;
  };

  for (let match = special.exec(text); match; match = special.exec(text)) {
    const at = match.index;
    const next = text[at + 1];
    switch (match[0]) {
      case '\n':
        add(at, at + 1, { br: true });
        break;
      case '\\':
        if (next === '\n') add(at, at + 2, { br: true });
        else if (next !== undefined && PUNCTUATION.test(next)) add(at, at + 2, next);
        break;
      case '`': {
        ticks ??= new Ticks(text);
        const length = run(text, at);
        const end = ticks.next(length, at + length);
        if (end < 0) special.lastIndex = at + length;
        else add(at, end + length, { code: text.slice(at + length, end) });
        break;
      }
      case '*':
      case '_':
      case '~': {
        const count = run(text, at);
        if (match[0] === '~' && count !== 2) special.lastIndex = at + count;
        else add(at, at + count, markOf(text, at, count));
        break;
      }
      case '!':
        if (next === '[') {
          brackets.push(pieces.length + (at > plain ? 1 : 0));
          add(at, at + 2, '![');
        }
        break;
      case '[':
        brackets.push(pieces.length + (at > plain ? 1 : 0));
        add(at, at + 1, '[');
        break;
      case ']': {
        const opened = brackets.pop();
        const target = opened === undefined || next !== '(' ? null : targetOf(text, at + 2);
        if (target === null) break;
        // A link holds no other link; an image becomes a link to it, so that nothing is fetched.
        brackets.length = 0;
        pieces[opened] = { open: target.address, href: allowed(target.address) };
        add(at, target.end, { close: true });
        // An image without words is named by its address.
        if (pieces.length - opened === 2) pieces.splice(opened + 1, 0, target.address);
        break;
      }
      case '<': {
        const angle = /<(?:br ?\/?|((?:https?:\/\/|mailto:)[^\s<>]*))>/iy;
        angle.lastIndex = at;
        const found = angle.exec(text);
        if (found) add(at, angle.lastIndex, found[1] ? { url: found[1] } : { br: true });
        break;
      }
      default: {
        const end = at > 0 && WORD.test(text[at - 1]) && text.charCodeAt(at - 1) < 128 ? at : bareEnd(text, at);
        if (end > at + match[0].length) add(at, end, { url: text.slice(at, end) });
      }
    }
  }
  flush(text.length);
  return pieces;
}

/** Length of the run of one character that begins at `at`. */
function run(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

/** Runs of backticks by their length, so that the end of each piece of code is found without searching. */
class Ticks {
  #byLength = new Map();

  constructor(text) {
    for (const match of text.matchAll(/`+/g)) {
      const places = this.#byLength.get(match[0].length) ?? { at: [], read: 0 };
      places.at.push(match.index);
      this.#byLength.set(match[0].length, places);
    }
  }

  /** The first run of this length at or behind `from`, or -1. Asked with growing `from`. */
  next(length, from) {
    const places = this.#byLength.get(length);
    if (!places) return -1;
    while (places.read < places.at.length && places.at[places.read] < from) places.read += 1;
    return places.at[places.read] ?? -1;
  }
}

function markOf(text, at, count) {
  const before = at === 0 ? ' ' : text[at - 1];
  const after = text[at + count] ?? ' ';
  let canOpen = /\S/.test(after);
  let canClose = /\S/.test(before);
  if (text[at] === '_') {
    // snake_case is no emphasis.
    if (WORD.test(before)) canOpen = false;
    if (WORD.test(after)) canClose = false;
  }
  return { mark: text[at], count, canOpen, canClose, opens: [], closes: [], at };
}

/** The `address "title")` of a link: where it points and where it ends, or null. */
function targetOf(text, from) {
  let at = from;
  while (text[at] === ' ') at += 1;
  const start = at;
  let address;
  if (text[at] === '<') {
    const end = /[<>\n]/g;
    end.lastIndex = at + 1;
    const found = end.exec(text);
    if (found?.[0] !== '>') return null;
    address = text.slice(at + 1, found.index);
    at = found.index + 1;
  } else {
    // The limit on brackets within also keeps text that only looks like the beginning of links from being read repeatedly.
    for (let depth = 0; at < text.length; at += 1) {
      const char = text[at];
      if (char === '(') depth += 1;
      else if (char === ')') depth -= 1;
      if (depth < 0 || depth > 3 || /\s/.test(char)) break;
      if (char === '\\') at += 1;
    }
    address = text.slice(start, at).replace(/\\([!-/:-@[-`{-~])/g, '$1');
  }
  while (text[at] === ' ') at += 1;
  if (text[at] === '"' || text[at] === "'") {
    const title = text[at] === '"' ? /["\n]/g : /['\n]/g;
    title.lastIndex = at + 1;
    const found = title.exec(text);
    if (!found || found[0] === '\n') return null;
    at = found.index + 1;
    while (text[at] === ' ') at += 1;
  }
  return text[at] === ')' ? { address, end: at + 1 } : null;
}

/**
 * Where an address in running text ends. It is ASCII, so that it ends before Chinese that follows without a space, and has
 * no square brackets, which may be those of a link.
 */
function bareEnd(text, at) {
  const body = /[\w\-.~:/?#@!$&'()*+,;=%]+/y;
  body.lastIndex = at;
  body.test(text);
  let end = body.lastIndex;
  let open = 0;
  for (let i = at; i < end; i += 1) open += text[i] === '(' ? 1 : text[i] === ')' ? -1 : 0;
  for (; end > at; end -= 1) {
    const char = text[end - 1];
    if (char === ')' && open < 0) open += 1;
    else if (!/[.,:;!?'*_~]/.test(char)) break;
  }
  return end;
}

/** Pairs the marks. Each kind has its own stack of opened ones, so a closing one never searches. */
function pair(pieces) {
  const scopes = [{ '*': [], _: [], '~': [] }];
  for (const piece of pieces) {
    if (piece.open !== undefined) scopes.push({ '*': [], _: [], '~': [] });
    else if (piece.close) scopes.pop();
    else if (piece.mark) pairMark(piece, scopes[scopes.length - 1]);
  }
}

function pairMark(piece, scope) {
  const opened = scope[piece.mark];
  while (piece.canClose && piece.count > 0 && opened.length > 0) {
    const opener = opened[opened.length - 1];
    const width = Math.min(2, opener.count, piece.count);
    for (const others of Object.values(scope)) {
      while (others.length > 0 && others[others.length - 1].at > opener.at) others.pop();
    }
    opener.count -= width;
    piece.count -= width;
    opener.opens.push(width);
    piece.closes.push(width);
    if (opener.count === 0) opened.pop();
  }
  if (piece.canOpen && piece.count > 0) opened.push(piece);
}

function build(pieces, root) {
  const parents = [root];
  let link = null; // the piece of the link that we are in
  let text = ''; // of the next text node
  /** The innermost element, with its text so far. */
  const here = () => {
    const node = parents[parents.length - 1];
    if (text !== '') node.append(text);
    text = '';
    return node;
  };
  const open = (make) => {
    if (parents.length > MAX_DEPTH) parents.push(here());
    else {
      const node = make();
      here().append(node);
      parents.push(node);
    }
  };
  for (const piece of pieces) {
    if (typeof piece === 'string') text += piece;
    else if (piece.br) here().append(el('br'));
    else if (piece.code !== undefined) here().append(el('code', {}, codeText(piece.code)));
    else if (piece.url) {
      const href = link ? null : allowed(piece.url);
      if (href) here().append(anchor(href, piece.url));
      else text += piece.url;
    } else if (piece.open !== undefined) {
      link = piece;
      open(() => (piece.href ? anchor(piece.href) : el('span')));
    } else if (piece.close) {
      here();
      parents.pop();
      // What may not be a link is shown for what it is.
      if (!link.href) text += ` (${link.open})`;
      link = null;
    } else {
      if (piece.closes.length > 0) here();
      parents.length -= piece.closes.length;
      text += piece.mark.repeat(piece.count);
      for (const width of piece.opens.reverse()) {
        open(() => el(piece.mark === '~' ? 'del' : width === 2 ? 'strong' : 'em'));
      }
    }
  }
  here();
}

/** One space at each end sets backticks in code apart from those around it, and is no part of it. */
function codeText(text) {
  const line = text.replace(/\n/g, ' ');
  return line.startsWith(' ') && line.endsWith(' ') && /\S/.test(line) ? line.slice(1, -1) : line;
}

function anchor(href, ...children) {
  return el('a', { href, title: href, target: '_blank', rel: 'noopener noreferrer nofollow' }, ...children);
}
