// What the page does when the server, or what lies between, does not do what it should.

import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { after, before, beforeEach, test } from 'node:test';
import { ask, closeBrowser, ended, lastAnswer, withPage } from './harness.mjs';
import { say, startMock } from './mock.mjs';

let mock;
let fine;
before(async () => {
  mock = await startMock();
  fine = mock.reply;
});
beforeEach(() => {
  mock.reply = fine;
  mock.key = null;
  mock.asked = [];
});
after(async () => {
  await closeBrowser();
  mock.stop();
});

const errorWords = (page) => page.locator('.answer .error').last().innerText();

test('a server that wants a key gets it, and it lasts as long as the tab', async () => {
  await withPage(mock.url, { failures: true }, async (page) => {
    mock.key = 'sesam';
    await page.fill('#prompt', 'first');
    await page.press('#prompt', 'Enter');
    await page.waitForSelector('#key-dialog[open]');
    assert.equal(await page.locator('#key-words').innerText(), 'This server asks for a key.');
    await page.keyboard.type('密钥');
    await page.keyboard.press('Enter');
    assert.equal(await page.locator('#key-words').innerText(), 'A key has letters, digits and signs of ASCII only.');
    await page.fill('#key', 'wrong');
    await page.keyboard.press('Enter');
    await page.waitForSelector('#key-words:has-text("The server did not accept this key.")');
    await page.keyboard.type('sesam');
    await page.keyboard.press('Enter');
    await ended(page);
    assert.match(await lastAnswer(page), /first/);
    await page.reload();
    await ask(page, 'second');
    assert.match(await lastAnswer(page), /second/);
    assert.equal(await page.evaluate(() => JSON.stringify({ ...localStorage }).includes('sesam')), false);

    await page.click('#toggle-settings');
    await page.click('#forget-key');
    assert.equal(await page.evaluate(() => JSON.stringify({ ...sessionStorage }).includes('sesam')), false);
    await page.fill('#prompt', 'third');
    await page.press('#prompt', 'Enter');
    await page.waitForSelector('#key-dialog[open]');
    await page.keyboard.press('Escape');
    await ended(page);
    assert.match(await errorWords(page), /The server asks for an API key\.\s+a key is needed/);
    await page.click('.answer:last-child button:has-text("Retry")');
    await page.waitForSelector('#key-dialog[open]');
    await page.fill('#key', 'sesam');
    await page.keyboard.press('Enter');
    await ended(page);
    assert.match(await lastAnswer(page), /third/);
  });
});

test('a key is asked for once when the page opens, for all that want one', async () => {
  mock.key = 'sesam';
  await withPage(`${mock.url}`, { failures: true, hash: '#metrics' }, async (page) => {
    await page.waitForSelector('#key-dialog[open]');
    await page.fill('#key', 'sesam');
    await page.keyboard.press('Enter');
    await page.waitForSelector('#model option[value="qwen3-0.6b"]', { state: 'attached' });
    await page.waitForSelector('.card');
    assert.equal(await page.locator('#key-dialog').evaluate((dialog) => dialog.open), false);
  });
});

const STATUSES = [
  [400, {}, /^The server did not accept the request\.\s+the words of the server$/],
  [403, {}, /^This is not allowed here\.\s+the words of the server$/],
  [404, {}, /^The server does not have this model\.\s+the words of the server$/],
  [413, {}, /^The message is longer than the server takes\.\s+the words of the server$/],
  [429, { 'Retry-After': '7' }, /^The server has as many questions as it takes\.\s+the words of the server\s+Try again in 7 s\.$/],
  [503, { 'Retry-After': 'DATE' }, /^The server is not ready to answer\.\s+the words of the server\s+Try again in (59|60) s\.$/],
  [503, { 'Retry-After': 'soon' }, /^The server is not ready to answer\.\s+the words of the server$/],
  [500, {}, /^The server answered with error 500\.\s+the words of the server$/],
];

test('each error is told in words, and another try works', async () => {
  await withPage(mock.url, { failures: true }, async (page) => {
    for (const [status, headers, words] of STATUSES) {
      mock.reply = (reply) => reply.error(status, 'the words of the server',
        Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, value === 'DATE' ? new Date(Date.now() + 60_000).toUTCString() : value])));
      await page.click('#new-chat');
      await ask(page, `question ${status}`);
      assert.match(await errorWords(page), words);
      mock.reply = fine;
      await page.click('.answer button:has-text("Retry")');
      await ended(page);
      assert.equal(await page.locator('.answer .error').count(), 0);
      assert.match(await lastAnswer(page), new RegExp(`question ${status}`));
    }
  });
});

test('an error page of something before the server is told by its status', async () => {
  await withPage(mock.url, { failures: true }, async (page) => {
    mock.reply = ({ response }) => response.writeHead(502, { 'Content-Type': 'text/html' }).end('<h1>Bad <script>alert(1)</script></h1>');
    await ask(page, 'first');
    assert.equal(await errorWords(page), 'The server answered with error 502.');
    mock.reply = ({ response }) => response.writeHead(200, { 'Content-Type': 'text/html' }).end('<h1>Log in</h1>');
    await ask(page, 'second');
    assert.match(await errorWords(page), /something that this page does not understand\.\s+Content-Type: text\/html/);
    // Two questions that got no answer go out as one.
    mock.reply = fine;
    await ask(page, 'third');
    assert.deepEqual(mock.asked.at(-1).messages, [{ role: 'user', content: 'first\n\nsecond\n\nthird' }]);
  });
});

/** Broken ends of an answer that has begun. */
const BROKEN = {
  'an error of the server': [(reply) => reply.event({ error: { message: 'out of pages', type: 'server_error', code: 'oom' } }), /could not finish the answer\.\s+out of pages/],
  'a dropped connection': [(reply) => reply.response.destroy(), /connection was lost/],
  'an end without [DONE]': [(reply) => reply.response.end(), /connection was lost/],
  'what is not JSON': [(reply) => reply.raw('data: {"choices":[{\n\n'), /does not understand\.\s+not JSON: {"choices":\[{/],
  'what is no object': [(reply) => reply.raw('data: 5\n\n'), /does not understand/],
  'an event without end': [async (reply) => {
    for (let i = 0; i < 50 && !reply.closed; i += 1) {
      reply.raw(`data: ${'x'.repeat(100_000)}`);
      await sleep(5);
    }
    reply.response.end();
  }, /does not understand\.\s+an event of more than/],
};

for (const [name, [breakOff, words]] of Object.entries(BROKEN)) {
  test(`an answer that breaks off keeps what came, says why and can be tried again: ${name}`, async () => {
    await withPage(mock.url, { failures: true }, async (page) => {
      mock.reply = async (reply) => {
        await say(reply, 'The beginning stays. ');
        // A browser may throw away what a lost connection brought but the page had not read yet.
        await page.waitForFunction(() => document.querySelector('.answer .markdown')?.innerText === 'The beginning stays.');
        await breakOff(reply);
      };
      await ask(page, 'first');
      assert.equal(await lastAnswer(page), 'The beginning stays.');
      assert.match(await errorWords(page), words);
      await page.reload();
      assert.match(await errorWords(page), words);
      mock.reply = fine;
      await page.click('.answer button:has-text("Retry")');
      await ended(page);
      assert.equal(await page.locator('.answer .error').count(), 0);
      assert.match(await lastAnswer(page), /first/);
      assert.deepEqual(mock.asked.at(-1).messages, [{ role: 'user', content: 'first' }]);
    });
  });
}

test('events are put together whatever way the network cuts them', async () => {
  const text = 'Größe 字😀 𠮷 **fett**';
  const stream = Buffer.from([
    ': keep-alive\n\n',
    'event: message\r\nid: 1\r\n', `data: ${JSON.stringify({ choices: [{ delta: { role: 'assistant', content: null } }] })}\r\n\r\n`,
    `data:${JSON.stringify({ choices: [{ delta: { content: text } }] })}\n\n`,
    `data: {"choices":\ndata: [{"delta":{"content":"!"}}]}\r\r`,
    'data\n\nunknown: x\n\n', 'data: {}\n\n', 'data: {"choices":[]}\n\n',
    'data: [DONE]\n\ndata: {"choices":[{"delta":{"content":"too late"}}]}\n\n',
  ].join(''));
  await withPage(mock.url, {}, async (page) => {
    for (const size of [1, 2, 3, 5, 64, stream.length]) {
      mock.reply = async (reply) => {
        reply.response.socket.setNoDelay(true);
        for (let at = 0; at < stream.length; at += size) {
          reply.raw(stream.subarray(at, at + size));
          await sleep(1);
        }
        reply.response.end();
      };
      await page.click('#new-chat');
      await ask(page, 'first');
      assert.equal(await lastAnswer(page), 'Größe 字😀 𠮷 fett!');
    }
  });
});

test('the parser of events holds at every cut', async () => {
  const stream = 'data: a\r\ndata: a\r\n\r\n: c\ndata:b\ndata: \ndata:  d\n\nevent: x\n\n\rdata: e\r\rdata: f';
  await withPage(mock.url, {}, async (page) => {
    const all = await page.evaluate(async (source) => {
      const { SseParser } = await import('/sse.js');
      const results = [];
      for (let a = 0; a <= source.length; a += 1) {
        for (let b = a; b <= source.length; b += 1) {
          const parser = new SseParser();
          results.push(JSON.stringify([source.slice(0, a), source.slice(a, b), source.slice(b)].flatMap((piece) => parser.push(piece))));
        }
      }
      return [...new Set(results)];
    }, stream);
    assert.deepEqual(all, [JSON.stringify(['a\na', 'b\n\n d', 'e'])]);
  });
});

test('reasoning is shown folded, apart from the answer, and is not sent back', async () => {
  mock.reply = async (reply) => {
    reply.reasoning('First I <b>think</b>.\n');
    await sleep(200);
    reply.reasoning('Then I know.');
    await sleep(300);
    await say(reply, 'It is so.');
    reply.end();
  };
  await withPage(mock.url, {}, async (page) => {
    await page.fill('#prompt', 'first');
    await page.press('#prompt', 'Enter');
    await page.waitForSelector('.reasoning summary:has-text("Thinking…")');
    await ended(page);
    assert.match(await page.locator('.reasoning summary').innerText(), /^Reasoning, 0\.\d s$/);
    assert.equal(await page.locator('.reasoning .plain').isVisible(), false);
    await page.click('.reasoning summary');
    assert.equal(await page.locator('.reasoning .plain').innerText(), 'First I <b>think</b>.\nThen I know.');
    assert.equal(await lastAnswer(page), 'It is so.');
    await ask(page, 'second');
    assert.deepEqual(mock.asked.at(-1).messages.map(({ content }) => content), ['first', 'It is so.', 'second']);
  });
});

test('an answer that the limit of tokens cut off says so', async () => {
  await withPage(mock.url, {}, async (page) => {
    for (const [finish, words] of [['length', 'Cut off: the limit of tokens was reached.'], ['content_filter', 'Ended by the server: content_filter.']]) {
      mock.reply = async (reply) => {
        await say(reply, 'It is');
        reply.end({ finish });
      };
      await ask(page, 'first');
      assert.equal(await page.locator('.answer .note').last().innerText(), words);
    }
  });
});

test('a server that is away is told, for models too, and reached again', async () => {
  const away = await startMock();
  await withPage(away.url, { failures: true }, async (page) => {
    await page.route('**/v1/**', (route) => route.abort());
    await ask(page, 'first');
    assert.equal(await errorWords(page), 'The server cannot be reached.');
    await page.reload();
    await page.waitForSelector('#notice:has-text("The server cannot be reached.")');
    assert.equal(await page.locator('#model option').innerText(), 'The server has no model');
    await page.unroute('**/v1/**');
    await page.click('#notice button:has-text("Retry")');
    await page.waitForSelector('#model option[value="qwen3-0.6b"]', { state: 'attached' });
    await page.click('.answer button:has-text("Retry")');
    await ended(page);
    assert.match(await lastAnswer(page), /first/);
  });
  away.stop();
});
