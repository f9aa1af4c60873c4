// What the page's files may not contain, whatever they do.

import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { test } from 'node:test';

const PAGE = new URL('../../crates/moli-server/page/', import.meta.url);
const files = await Promise.all((await readdir(PAGE)).map(async (name) => [name, await readFile(new URL(name, PAGE), 'utf8')]));

test('nothing turns text into HTML or code', () => {
  const forbidden = /innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|srcdoc|\beval\b|new Function/;
  for (const [name, text] of files) assert.doesNotMatch(text, forbidden, name);
});

test('no script and no style stands in the HTML, and nothing comes from elsewhere', () => {
  const html = files.find(([name]) => name === 'index.html')[1];
  assert.doesNotMatch(html, /<style|\sstyle=|\son\w+=|<script(?![^>]*\bsrc=)/);
  for (const [name, text] of files) {
    const addresses = (text.match(/(?:src|href|url\(|import|from)\s*[=('"\s]+(?:https?:)?\/\/[^'")\s]+/g) ?? []);
    assert.deepEqual(addresses, [], name);
  }
});

test('a file of the page has one subject and is small', () => {
  let all = 0;
  for (const [name, text] of files) {
    assert.ok(text.split('\n').length < 600, name);
    all += Buffer.byteLength(text);
  }
  assert.ok(all < 120_000, `${all} bytes`);
});
