// An answer is hostile text: whatever a model writes, the page runs nothing, fetches nothing and stays in its layout. The
// harness counts dialogs, popups, requests to others, and violations of the policy.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { ask, closeBrowser, ended, lastAnswer, withPage } from './harness.mjs';
import { startMock } from './mock.mjs';

let mock;
before(async () => {
  mock = await startMock();
});
after(async () => {
  await closeBrowser();
  mock.stop();
});

const ATTACK = [
  '<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '<img src="http://evil.example/a.png">', '<svg onload=alert(1)>',
  '<iframe srcdoc="<script>alert(1)</script>"></iframe>', '<a href="javascript:alert(1)">x</a>', '<style>@import "http://evil.example/b.css"</style>',
  '<link rel=stylesheet href=http://evil.example/c.css>', '<meta http-equiv=refresh content="0;url=http://evil.example/">', '<form action=http://evil.example><button>x</button></form>',
  '[click](javascript:alert(1))', '[click](data:text/html,<script>alert(1)</script>)', '![image](http://evil.example/d.png)', '![image](javascript:alert(1))',
  '<javascript:alert(1)>', '[x](http://evil.example/"onmouseover="alert(1))', '[x](https://evil.example/ "\\" onmouseover=alert(1) \\"")',
  '```html"><script>alert(1)</script>\n</code></pre><script>alert(1)</script>\n```', '`</code><script>alert(1)</script>`',
  '| <script>alert(1)</script> | <img src=x onerror=alert(1)> |\n|---|---|\n| </td><script>alert(1)</script> | [x](javascript:alert(1)) |',
  '# <script>alert(1)</script>', '> <img src=x onerror=alert(1)>', '- <details open ontoggle=alert(1)>', '<br onload=alert(1)>', '<BR>', '${alert(1)} {{alert(1)}}', '\u202Etxt.exe\u202C',
].join('\n\n');

test('markup in an answer, in its reasoning, in a question, in an error and in names stays text', async () => {
  mock.models = [{ id: 'm<img src=x onerror=alert(1)>', context: 100, loaded: false }];
  await withPage(mock.url, { failures: true }, async (page) => {
    mock.reply = async (reply) => {
      reply.reasoning(ATTACK);
      for (let at = 0; at < ATTACK.length; at += 7) reply.text(ATTACK.slice(at, at + 7));
      reply.end({ finish: '<img src=x onerror=alert(1)>' });
    };
    await ask(page, ATTACK);
    await page.click('.reasoning summary');
    await page.waitForTimeout(300);
    assert.match(await lastAnswer(page), /<script>alert\(1\)<\/script>/);
    const found = await page.evaluate(() => ({
      kinds: [...new Set([...document.querySelectorAll('#messages *')].map((node) => node.localName))].sort(),
      handlers: [...document.querySelectorAll('*')].flatMap((node) => [...node.attributes]).filter(({ name }) => name.startsWith('on')).length,
      scripts: document.scripts.length,
      links: [...document.querySelectorAll('#messages a')].map(({ protocol, rel, target }) => `${protocol} ${rel} ${target}`),
    }));
    const allowed = ['a', 'article', 'blockquote', 'br', 'button', 'code', 'details', 'div', 'figcaption', 'figure', 'h3', 'li', 'p', 'pre', 'span',
      'summary', 'table', 'tbody', 'td', 'th', 'thead', 'tr', 'ul'];
    assert.deepEqual(found.kinds.filter((kind) => !allowed.includes(kind)), []);
    assert.deepEqual([found.handlers, found.scripts], [0, 1]);
    assert.deepEqual([...new Set(found.links)].sort(), ['http: noopener noreferrer nofollow _blank', 'https: noopener noreferrer nofollow _blank']);
    assert.equal(await page.locator('.answer .note').innerText(), 'Ended by the server: <img src=x onerror=alert(1)>.');

    mock.reply = (reply) => reply.error(400, ATTACK);
    await ask(page, 'second');
    assert.match(await page.locator('.error').innerText(), /<svg onload/);
    await page.reload();
    await page.waitForTimeout(300);
    assert.equal(await page.evaluate(() => document.scripts.length), 1);
  });
});

test('a hostile answer that streams keeps the page alive and in its width', async () => {
  for (const text of ['a'.repeat(100_000), '|a'.repeat(50_000), '>'.repeat(100_000), `| a | b |\n|---|---|\n${'| c | d |\n'.repeat(5000)}`, '`'.repeat(99_999), '*a '.repeat(33_000), '字'.repeat(60_000)]) {
    await withPage(mock.url, { viewport: { width: 360, height: 740 } }, async (page) => {
      mock.reply = async (reply) => {
        for (let at = 0; at < text.length; at += 500) {
          reply.text(text.slice(at, at + 500));
          await new Promise(setImmediate);
        }
        reply.end();
      };
      // The longest that anything had to wait for the page.
      await page.evaluate(() => {
        window.longest = 0;
        let last = performance.now();
        setInterval(() => {
          window.longest = Math.max(window.longest, performance.now() - last);
          last = performance.now();
        }, 10);
      });
      const began = Date.now();
      await page.fill('#prompt', 'first');
      await page.press('#prompt', 'Enter');
      await ended(page);
      const { longest, width } = await page.evaluate(() => ({ longest: window.longest, width: document.documentElement.scrollWidth }));
      console.log(`# ${text.slice(0, 6)}: ${Date.now() - began} ms, longest wait ${longest.toFixed(0)} ms`);
      assert.ok(longest < 2000, `${longest} ms`);
      assert.equal(width, 360);
    });
  }
});
