// That everybody can use the page: keyboard only, narrow screens, both themes, both languages.

import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { CHINESE, ENGLISH, demoMetrics } from './demo.mjs';
import { ask, closeBrowser, ended, lastAnswer, questions, withPage } from './harness.mjs';
import { say, startMock } from './mock.mjs';

const PAGE = new URL('../../crates/moli-server/page/', import.meta.url);

let mock;
before(async () => {
  mock = await startMock();
  mock.metrics = demoMetrics();
  mock.reply = async (reply) => {
    const question = reply.body.messages.at(-1).content;
    if (question === 'error') {
      reply.error(429, 'too many', { 'Retry-After': '3' });
      return;
    }
    reply.reasoning('A thought. ');
    await say(reply, `${question === 'long' ? ENGLISH.repeat(20) : ENGLISH}\n\n${CHINESE}\n\n\`code\` [link](https://example.org) ~~gone~~`, 1);
    reply.end({ finish: 'length' });
  };
});
after(async () => {
  await closeBrowser();
  mock.stop();
});

test('no screen from 320 pixels on scrolls sideways, whatever is open', async () => {
  for (const width of [320, 360, 768, 1280]) {
    await withPage(mock.url, { viewport: { width, height: 740 }, failures: true }, async (page) => {
      const check = async (what) => {
        const got = await page.evaluate(() => [document.documentElement.scrollWidth, document.getElementById('scroll').scrollWidth - document.getElementById('scroll').clientWidth]);
        assert.deepEqual(got, [width, 0], `${what} at ${width}`);
      };
      await check('empty');
      await ask(page, 'x'.repeat(300));
      await check('an answer');
      await ask(page, 'error');
      await check('an error');
      await page.locator('.question button', { hasText: 'Edit' }).last().click();
      await check('editing');
      await page.click('#toggle-settings');
      await check('settings');
      await page.fill('#field-top_k', 'x');
      await check('a wrong setting');
      await page.click('#close-settings');
      if (width < 960) await page.click('#toggle-sidebar');
      await check('chats');
      await page.click('#to-metrics');
      await page.waitForSelector('.card tbody');
      await check('metrics');
      assert.ok(await page.evaluate(() => document.getElementById('metrics-view').scrollWidth <= document.getElementById('metrics-view').clientWidth));
    });
  }
});

test('all is done with the keyboard alone', async () => {
  await withPage(mock.url, {}, async (page) => {
    const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim());
    const tabTo = async (name, key = 'Tab') => {
      for (let presses = 0; presses < 40; presses += 1) {
        if ((await focused()) === name) return;
        await page.keyboard.press(key);
      }
      assert.fail(`no way to ${name}`);
    };
    assert.equal(await focused(), 'prompt');
    await page.keyboard.type('one');
    await page.keyboard.press('Shift+Enter');
    await page.keyboard.type('two');
    await page.keyboard.press('Enter');
    await ended(page);
    assert.deepEqual(await questions(page), ['one\ntwo']);
    assert.equal(await focused(), 'prompt');

    // The last question again, from an empty field.
    await page.keyboard.press('ArrowUp');
    await page.keyboard.press('End');
    await page.keyboard.type('!');
    await page.keyboard.press('Enter');
    await ended(page);
    assert.deepEqual(await questions(page), ['one\ntwo!']);

    await page.keyboard.type('long');
    await page.keyboard.press('Enter');
    await page.waitForSelector('#stop:not([hidden])');
    await page.keyboard.press('Escape');
    await ended(page);
    assert.equal(await page.locator('.note').last().innerText(), 'Stopped.');

    await tabTo('Retry', 'Shift+Tab');
    await page.keyboard.press('Enter');
    await page.waitForSelector('#stop:not([hidden])');
    await tabTo('stop');
    await page.keyboard.press('Space');
    await ended(page);
    assert.equal(await focused(), 'prompt');

    await tabTo('toggle-settings', 'Shift+Tab');
    await page.keyboard.press('Enter');
    assert.equal(await focused(), 'system');
    await tabTo('field-top_k');
    await page.keyboard.press('ArrowUp');
    assert.equal(await page.inputValue('#field-top_k'), '1');
    await page.keyboard.press('Escape');
    assert.equal(await page.locator('#settings').isVisible(), false);
    assert.equal(await focused(), 'toggle-settings');

    await tabTo('theme', 'Shift+Tab');
    await page.keyboard.press('d');
    assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), 'dark');
    await tabTo('to-metrics', 'Shift+Tab');
    await page.keyboard.press('Enter');
    await page.waitForSelector('.card');
    await tabTo('new-chat', 'Shift+Tab');
    await page.keyboard.press('Enter');
    assert.equal(await page.locator('#chat-view').isVisible(), true);
    assert.equal(await focused(), 'prompt');
    await page.keyboard.type('second');
    await page.keyboard.press('Enter');
    await ended(page);
    await tabTo('Delete', 'Shift+Tab');
    for (const left of [1, 0]) {
      await page.keyboard.press('Enter');
      assert.equal(await page.locator('#chat-list li').count(), left);
      assert.equal(await focused(), left === 1 ? 'Delete' : 'new-chat');
    }
    await tabTo('Undo');
    await page.keyboard.press('Enter');
    assert.equal(await page.locator('#chat-list li').count(), 1);
  });
});

test('the first stop of the keyboard leads to the text field, and every stop is seen', async () => {
  await withPage(mock.url, {}, async (page) => {
    await ask(page, 'first');
    await page.click('#toggle-settings');
    await page.focus('#new-chat');
    await page.keyboard.press('Shift+Tab');
    assert.equal(await page.locator(':focus').innerText(), 'To the message');
    await page.keyboard.press('Enter');
    assert.equal(await page.evaluate(() => document.activeElement.id), 'prompt');
    await page.focus('.skip');
    const seen = new Set();
    for (let stop = 0; stop < 80; stop += 1) {
      await page.keyboard.press('Tab');
      const at = await page.evaluate(() => {
        const node = document.activeElement;
        if (node === document.body) return null;
        const { outlineStyle, outlineWidth } = getComputedStyle(node);
        const box = node.getBoundingClientRect();
        return { name: node.id || node.textContent.slice(0, 30), outline: `${outlineStyle} ${outlineWidth}`, size: box.width * box.height };
      });
      if (!at || seen.has(at.name) && at.name === 'new-chat') break;
      seen.add(at.name);
      assert.equal(at.outline, 'solid 2px', at.name);
      assert.ok(at.size > 100, at.name);
    }
    for (const name of ['new-chat', 'language', 'theme', 'toggle-sidebar', 'model', 'toggle-settings', 'Edit', 'prompt', 'send', 'system', 'field-seed']) {
      assert.ok(seen.has(name), name);
    }
  });
});

test('Enter and Escape of an input method are its own', async () => {
  await withPage(mock.url, {}, async (page) => {
    await page.fill('#prompt', '你好');
    const composing = (key) => page.evaluate((name) => document.activeElement
      .dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true, cancelable: true, isComposing: true })), key);
    await composing('Enter');
    assert.deepEqual(await questions(page), []);
    await page.fill('#prompt', 'long');
    await page.press('#prompt', 'Enter');
    await page.waitForSelector('#stop:not([hidden])');
    await composing('Escape');
    await page.waitForTimeout(100);
    assert.equal(await page.locator('#stop').isVisible(), true);
    await page.keyboard.press('Escape');
    await ended(page);
    await page.press('#prompt', 'ArrowUp');
    await composing('Enter');
    await composing('Escape');
    assert.equal(await page.locator('.question textarea').count(), 1);
  });
});

/** The contrast of each text on the page with what lies behind it, those below 4.5 (3 for large text). */
function lowContrast(page) {
  return page.evaluate(() => {
    const rgb = (color) => color.match(/[\d.]+/g).map(Number);
    const luminance = (channels) => channels.slice(0, 3)
      .map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
      .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
    const ground = (node) => {
      for (let at = node; at; at = at.parentElement) {
        const color = rgb(getComputedStyle(at).backgroundColor);
        if (color.length === 3 || color[3] === 1) return color;
      }
      return [255, 255, 255];
    };
    const low = [];
    let checked = 0;
    for (const node of document.querySelectorAll('body *')) {
      const text = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim() !== '');
      const style = getComputedStyle(node);
      if ((!text && !['INPUT', 'TEXTAREA', 'SELECT'].includes(node.tagName)) || !node.checkVisibility() || style.clipPath !== 'none') continue;
      const [a, b] = [luminance(rgb(style.color)), luminance(ground(node))].sort((x, y) => y - x);
      const ratio = (a + 0.05) / (b + 0.05);
      const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
      checked += 1;
      if (ratio < (large ? 3 : 4.5)) low.push(`${node.tagName} ${node.className} ${node.textContent.slice(0, 20)}: ${ratio.toFixed(2)}`);
    }
    return { low, checked };
  });
}

test('text has the contrast of WCAG AA in both themes', async () => {
  for (const colorScheme of ['light', 'dark']) {
    await withPage(mock.url, { colorScheme, failures: true }, async (page) => {
      const check = async (least) => {
        const { low, checked } = await lowContrast(page);
        assert.deepEqual(low, [], colorScheme);
        assert.ok(checked >= least, `${checked} texts`);
      };
      await ask(page, 'first');
      await ask(page, 'error');
      await page.locator('.reasoning summary').first().click();
      await page.click('#toggle-settings');
      await page.fill('#field-top_k', 'x');
      await page.click('[aria-label^="Delete the chat"]');
      await page.click('#notice button:has-text("Undo")');
      await check(60);
      await page.click('#to-metrics');
      await page.waitForSelector('.card tbody');
      await check(40);
      mock.key = 'sesam';
      await page.waitForSelector('#key-dialog[open]');
      await check(40);
      await page.keyboard.press('Escape');
      await page.waitForSelector('#metrics-view .error');
      await check(5);
      mock.key = null;
    });
  }
});

test('everything that takes input has a name, in both languages', async () => {
  for (const locale of ['en-US', 'zh-CN']) {
    await withPage(mock.url, { locale }, async (page) => {
      await ask(page, 'first');
      await page.click('#toggle-settings');
      const { nameless, english } = await page.evaluate(() => {
        const name = (node) => node.getAttribute('aria-label') || [...(node.labels ?? [])].map((label) => label.textContent.trim()).join('') || node.textContent.trim();
        const all = [...document.querySelectorAll('button, select, input, textarea, a, summary, nav, aside, [role=log], [role=meter]')];
        return {
          nameless: all.filter((node) => name(node) === '').map((node) => node.outerHTML.slice(0, 80)),
          english: [...document.querySelectorAll('[data-text]')].map((node) => node.textContent).filter((text) => text === '' || text.includes('undefined')),
        };
      });
      assert.deepEqual([nameless, english], [[], []]);
      assert.notEqual(await lastAnswer(page), '');
    });
  }
});

test('both languages have the same words, and all of them are used', async () => {
  await withPage(mock.url, {}, async (page) => {
    const { en, zh } = await page.evaluate(async () => (await import('/i18n.js')).languages());
    assert.deepEqual(zh, en);
    const names = (await readdir(PAGE)).filter((name) => /\.(js|html)$/.test(name) && name !== 'i18n.js');
    const source = (await Promise.all(names.map((name) => readFile(new URL(name, PAGE), 'utf8')))).join('\n');
    const sampling = ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed'];
    assert.deepEqual(en.filter((key) => !/^error\d+$/.test(key) && !sampling.includes(key) && !new RegExp(`['"]${key}['"]`).test(source)), []);
    const used = [...source.matchAll(/\bt\('(\w+)'/g), ...source.matchAll(/data-(?:text|label|placeholder)="(\w+)"/g)].map(([, key]) => key);
    assert.deepEqual(used.filter((key) => !en.includes(key)), []);
  });
});
