// A conversation, as a person has it. With MOLI_URL it is one with a real server, otherwise with the mock.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { ask, closeBrowser, ended, lastAnswer, questions, withPage } from './harness.mjs';
import { MODELS, say, startMock } from './mock.mjs';

const real = process.env.MOLI_URL;
let mock;
let url;
before(async () => {
  mock = real ? null : await startMock();
  url = real ? new URL('.', real).href : mock.url;
  if (!mock) return;
  mock.reply = async (reply) => {
    const question = reply.body.messages.at(-1).content;
    await say(reply, question.includes('story') ? 'And then it went on. '.repeat(400) : `About **${question}**: it is so.`);
    reply.end();
  };
});
after(async () => {
  await closeBrowser();
  mock?.stop();
});

const STORY = 'Tell a long story of many pages.';

/**
 * A page with a chat. A real model might go on for long where nobody stops it; and it might end its story before it can be
 * stopped, so that one question is asked with a far limit, past the model's own end.
 */
const withChat = (options, run) => withPage(url, { ...options, settings: real ? { sampling: { max_tokens: 200 } } : undefined }, async (page) => {
  if (real) await page.route('**/v1/chat/completions', endlessStory);
  await run(page);
});

function endlessStory(route) {
  const body = route.request().postDataJSON();
  if (body.messages.at(-1).content === STORY) Object.assign(body, { ignore_eos: true, max_tokens: 6000 });
  return route.continue({ postData: JSON.stringify(body) });
}

async function askForStory(page) {
  await page.fill('#prompt', STORY);
  await page.press('#prompt', 'Enter');
  await page.waitForFunction(() => document.querySelector('.answer:last-child .markdown')?.textContent.length > 20);
}

test('a question is answered word by word, with its numbers', async () => {
  await withChat({}, async (page) => {
    await askForStory(page);
    const early = await lastAnswer(page);
    await page.waitForFunction((length) => document.querySelector('.answer .markdown').textContent.length > length, early.length);
    await page.waitForFunction(() => /tokens\/s/.test(document.querySelector('#rate').textContent));
    await page.click('#stop');
    await ended(page);
    await ask(page, 'one plus one');
    assert.notEqual(await lastAnswer(page), '');
    assert.match(await page.locator('.stats').last().innerText(), /\d+ tokens · [\d.,]+ tokens\/s · first token after [\d.]+ s/);
    assert.match(await page.locator('#context').innerText(), /Context [\d,]+ of [\d,]+/);
    assert.equal(await page.locator('#rate').innerText(), '');
    assert.match(await page.locator('#status').innerText(), /^The answer is complete\. ./);
  });
});

test('the button and Escape stop an answer, and what came of it stays', async () => {
  await withChat({}, async (page) => {
    for (const stop of [() => page.click('#stop'), () => page.keyboard.press('Escape')]) {
      await askForStory(page);
      await stop();
      await ended(page);
      assert.equal(await page.locator('.answer .note').last().innerText(), 'Stopped.');
      const text = await lastAnswer(page);
      assert.ok(text.length > 0);
      await page.waitForTimeout(300);
      assert.equal(await lastAnswer(page), text);
      assert.equal(await page.evaluate(() => document.activeElement.id), 'prompt');
    }
  });
});

test('a last question is edited in its place, an earlier one in a new chat', async () => {
  await withChat({}, async (page) => {
    await ask(page, 'first');
    await ask(page, 'second');
    await page.locator('.question button', { hasText: 'Edit' }).last().click();
    await page.keyboard.type('s');
    await page.keyboard.press('Enter');
    await ended(page);
    assert.deepEqual(await questions(page), ['first', 'seconds']);
    assert.equal(await page.locator('#chat-list li').count(), 1);

    await page.locator('.question button', { hasText: 'Edit' }).first().click();
    await page.keyboard.press('Escape');
    assert.deepEqual(await questions(page), ['first', 'seconds']);
    await page.locator('.question button', { hasText: 'Edit' }).first().click();
    await page.keyboard.press('Control+A');
    await page.keyboard.type('other');
    await page.keyboard.press('Enter');
    await ended(page);
    assert.deepEqual(await questions(page), ['other']);
    assert.equal(await page.locator('#chat-list li').count(), 2);
    await page.locator('#chat-list li button').nth(2).click();
    assert.deepEqual(await questions(page), ['first', 'seconds']);
  });
});

test('an answer is tried again, and so is a question', async () => {
  await withChat({}, async (page) => {
    await ask(page, 'first');
    await page.click('.answer .actions button:has-text("Retry")');
    await ended(page);
    await page.click('.question .actions button:has-text("Ask again")');
    await ended(page);
    assert.deepEqual(await questions(page), ['first']);
    assert.equal(await page.locator('.answer').count(), 1);
    assert.notEqual(await lastAnswer(page), '');
    if (mock) assert.deepEqual(mock.asked.slice(-2).map(({ messages }) => messages), Array(2).fill([{ role: 'user', content: 'first' }]));
  });
});

test('chats outlive a reload, are opened again, deleted and brought back', async () => {
  await withChat({}, async (page) => {
    await ask(page, 'first');
    const answer = await lastAnswer(page);
    await page.click('#new-chat');
    assert.deepEqual(await questions(page), []);
    await ask(page, 'second');
    await page.reload();
    assert.deepEqual(await questions(page), ['second']);
    await page.locator('#chat-list li button', { hasText: 'first' }).click();
    assert.equal(await lastAnswer(page), answer);

    await page.click('[aria-label="Delete the chat “first”"]');
    assert.deepEqual(await questions(page), []);
    assert.equal(await page.locator('#chat-list li').count(), 1);
    await page.click('#notice button:has-text("Undo")');
    assert.equal(await lastAnswer(page), answer);
    await page.click('#toggle-settings');
    await page.click('#delete-all');
    await page.reload();
    assert.equal(await page.locator('#chat-list li').count(), 0);
  });
});

test('an answer that a reload cut off is kept as stopped', async () => {
  await withChat({}, async (page) => {
    await askForStory(page);
    await page.reload();
    await ended(page);
    assert.ok((await lastAnswer(page)).length > 0);
    assert.equal(await page.locator('.answer .note').innerText(), 'Stopped.');
  });
});

test('an answer goes on while another chat is open', async () => {
  await withChat({}, async (page) => {
    await askForStory(page);
    await page.click('#new-chat');
    await ask(page, 'short');
    assert.deepEqual(await questions(page), ['short']);
    await page.locator('#chat-list li button', { hasText: 'Tell a long' }).click();
    await page.waitForSelector('#stop:not([hidden])');
    await page.click('#stop');
    await ended(page);
    assert.deepEqual(await questions(page), [STORY]);
  });
});

test('theme and language follow the system until they are chosen, and are remembered', async () => {
  const theme = (page) => page.evaluate(() => document.documentElement.dataset.theme);
  await withChat({ colorScheme: 'dark', locale: 'zh-CN' }, async (page) => {
    assert.equal(await theme(page), 'dark');
    assert.equal(await page.locator('#send').innerText(), '发送');
    assert.equal(await page.evaluate(() => document.documentElement.lang), 'zh-CN');
    await ask(page, '你好');
    await page.emulateMedia({ colorScheme: 'light' });
    await page.waitForFunction(() => document.documentElement.dataset.theme === 'light');
    await page.selectOption('#theme', 'dark');
    await page.selectOption('#language', 'en');
    assert.equal(await theme(page), 'dark');
    assert.equal(await page.locator('#send').innerText(), 'Send');
    assert.deepEqual(await page.locator('.answer .actions button').allInnerTexts(), ['Retry', 'Copy']);
    await page.reload();
    assert.equal(await theme(page), 'dark');
    assert.equal(await page.locator('#send').innerText(), 'Send');
  });
});

test('the system prompt and the sampling that are set are asked for, and no others', async () => {
  await withChat({}, async (page) => {
    await page.click('#toggle-settings');
    await page.fill('#system', 'Answer with one word.');
    const values = { temperature: '0.5', top_p: '0.9', top_k: '20', min_p: '0.05', max_tokens: '16', seed: '7' };
    for (const [name, value] of Object.entries(values)) await page.fill(`#field-${name}`, value);
    await ask(page, 'first');
    assert.notEqual(await lastAnswer(page), '');
    if (mock) {
      const { messages, model, stream, stream_options: options, ...sampling } = mock.asked.at(-1);
      assert.deepEqual(messages[0], { role: 'system', content: 'Answer with one word.' });
      assert.deepEqual(sampling, Object.fromEntries(Object.entries(values).map(([name, value]) => [name, Number(value)])));
      assert.deepEqual([model, stream, options], ['qwen3-0.6b', true, { include_usage: true }]);
    }
    await page.reload();
    await page.click('#toggle-settings');
    assert.equal(await page.inputValue('#field-top_k'), '20');
    assert.equal(await page.inputValue('#system'), 'Answer with one word.');

    await page.fill('#field-top_k', '1.5');
    assert.equal(await page.locator('#field-top_k-problem').innerText(), 'A whole number from 0 to 1,000,000.');
    await page.fill('#prompt', 'second');
    await page.press('#prompt', 'Enter');
    assert.equal(await page.evaluate(() => document.activeElement.id), 'field-top_k');
    assert.equal(await page.inputValue('#prompt'), 'second');
    assert.deepEqual(await questions(page), ['first']);
    await page.fill('#field-top_k', '');
    await page.press('#prompt', 'Enter');
    await ended(page);
    if (mock) assert.equal('top_k' in mock.asked.at(-1), false);
  });
});

test('the model is picked from those of the server', { skip: real ? 'a real server may have one only' : false }, async () => {
  await withChat({}, async (page) => {
    assert.deepEqual(await page.locator('#model option').allInnerTexts(), ['qwen3-0.6b', 'smollm2-135m-instruct (not loaded)']);
    await page.selectOption('#model', 'smollm2-135m-instruct');
    await ask(page, 'first');
    assert.equal(mock.asked.at(-1).model, 'smollm2-135m-instruct');
    assert.equal(await page.locator('.answer h3').first().innerText(), 'smollm2-135m-instruct');
    // Its context is known once it is loaded.
    assert.equal(await page.locator('#context').isVisible(), false);
    mock.models = MODELS.map((model) => ({ ...model, context: 2048, loaded: true }));
    await ask(page, 'second');
    await page.waitForSelector('#context:has-text("of 2,048")');
    mock.models = MODELS;
    await page.reload();
    await page.waitForSelector('#model option[value=smollm2-135m-instruct]', { state: 'attached' });
    assert.equal(await page.inputValue('#model'), 'smollm2-135m-instruct');
  });
});

test('what is stored stays within bounds, and what is broken there is passed over', async () => {
  await withChat({}, async (page) => {
    await page.evaluate(() => {
      const message = { role: 'user', content: 'x'.repeat(30_000) };
      for (let n = 0; n < 99; n += 1) {
        localStorage.setItem(`moli.chat.${n}`, JSON.stringify({ id: String(n), title: `t${n}`, updated: n, system: '', messages: [message] }));
      }
      localStorage.setItem('moli.chat.a', '{"id":"a"');
      localStorage.setItem('moli.chat.b', '{"id":"b","title":"t","updated":1,"system":"","messages":[{"role":"assistant","content":"x","reasoning":1}]}');
      localStorage.setItem('moli.settings', '{"theme":5,"sampling":{"top_k":"x","evil":1}}');
    });
    await page.reload();
    assert.equal(await page.locator('#chat-list li').count(), 99);
    await ask(page, 'y'.repeat(1_200_000).slice(0, real ? 10 : undefined));
    if (real) return;
    const units = await page.evaluate(() => Object.values({ ...localStorage }).reduce((sum, text) => sum + text.length, 0));
    assert.ok(units < 4_100_000, `${units}`);
    assert.equal(await page.locator('#chat-list li button', { hasText: /^t0$/ }).count(), 0);
    assert.equal(await page.locator('#chat-list li button', { hasText: /^t98$/ }).count(), 1);
  });
});

test('a chat for which there is no room is told', { skip: real ? 'said of the page, whatever the server' : false }, async () => {
  await withChat({}, async (page) => {
    await page.evaluate(() => {
      Storage.prototype.setItem = () => {
        throw new DOMException('full', 'QuotaExceededError');
      };
    });
    await page.fill('#prompt', 'first');
    await page.press('#prompt', 'Enter');
    await page.waitForSelector('#notice:has-text("This browser has no room")');
    await ended(page);
    assert.match(await lastAnswer(page), /first/);
  });
});

test('code and answers are copied, without a clipboard object too', async () => {
  if (mock) mock.reply = async (reply) => {
    reply.text('```sh\nls -l\n```\n');
    reply.end();
  };
  for (const secure of [true, false]) {
    await withChat({ permissions: ['clipboard-read', 'clipboard-write'] }, async (page) => {
      await ask(page, 'Which command lists files?');
      if (!secure) await page.evaluate(() => Object.defineProperty(navigator, 'clipboard', { value: undefined }));
      await page.evaluate(() => {
        window.copied = [];
        addEventListener('copy', () => window.copied.push(document.activeElement.value));
      });
      const clipboard = () => (secure ? page.evaluate(() => navigator.clipboard.readText()) : page.evaluate(() => window.copied.at(-1)));
      if (mock) {
        await page.click('.code button');
        await page.waitForSelector('.code button:has-text("Copied")');
        assert.equal(await clipboard(), 'ls -l');
      }
      await page.click('.answer .actions button:has-text("Copy")');
      await page.waitForSelector('.answer .actions button:has-text("Copied")');
      assert.ok((await clipboard()).includes((await lastAnswer(page)).split(/[\s`*]/).find((word) => /^\w+$/.test(word)) ?? ''));
    });
  }
});
