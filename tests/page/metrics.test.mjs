// The view of live metrics.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { closeBrowser, withPage } from './harness.mjs';
import { startMock } from './mock.mjs';

let mock;
before(async () => {
  mock = await startMock();
});
after(async () => {
  await closeBrowser();
  mock.stop();
});

/** Metrics of two models at the `n`-th reading, as counters that grow. */
function reading(n) {
  const model = (name, scale) => {
    const label = `model="${name}"`;
    const histogram = (metric, counts) => counts.map(([le, count]) => `${metric}_bucket{${label},le="${le}"} ${count * n * scale}`).join('\n');
    return [
      `moli_requests_running{${label}} ${scale}`,
      `moli_requests_waiting{${label}} ${2 * scale}`,
      `moli_completion_tokens_total{${label}} ${1000 * n * scale}`,
      `moli_prompt_tokens_total{${label}} ${400 * n * scale}`,
      `moli_cached_tokens_total{${label}} ${100 * n * scale}`,
      `moli_kv_pages{${label}} 100`,
      `moli_kv_pages_free{${label}} 60`,
      `moli_kv_pages_cached{${label}} 15`,
      `moli_rejected_total{${label},reason="queue_full"} ${n * scale}`,
      // Half of them within 0.1 s, 95% in the middle of the last bucket.
      histogram('moli_ttft_seconds', [['0.1', 10], ['0.2', 18], ['0.4', 20], ['+Inf', 20]]),
      histogram('moli_inter_token_seconds', [['0.01', 0], ['0.03', 100], ['+Inf', 100]]),
    ].join('\n');
  };
  return `# HELP moli_requests_running x\n# TYPE moli_requests_running gauge\n${model('a', 1)}\n${model('b\\"\\n}', 3)}\nmoli_rejected_total{reason="bad_request"} 2\nmoli_resident_bytes 1.073741824e+09\n# EOF\n`;
}

const card = (page, title) => page.locator('.card', { has: page.locator(`h2:text-is("${title}")`) });
const values = async (page, title) => (await card(page, title).locator('dd').allInnerTexts());

test('the page asks each second while it shows metrics, and draws what changed', async () => {
  let n = 0;
  let asked = 0;
  mock.metrics = () => {
    asked += 1;
    n += 1;
    return reading(n);
  };
  await withPage(mock.url, { hash: '#metrics' }, async (page) => {
    await page.waitForFunction(() => document.querySelectorAll('.spark path[d*=L]').length > 0);
    assert.deepEqual(await values(page, 'Answers running'), ['4']);
    assert.deepEqual(await values(page, 'Answers waiting'), ['8']);
    const rate = Number((await values(page, 'Answer tokens per second'))[0].replace(',', ''));
    assert.ok(rate > 2000 && rate < 4100, `${rate} of about 4000`);
    assert.deepEqual(await values(page, 'Time to first token'), ['100 ms', '300 ms']);
    assert.deepEqual(await values(page, 'Time between tokens'), ['20 ms', '29 ms']);
    assert.deepEqual(await values(page, 'Prompt tokens from the cache'), ['25%']);
    assert.deepEqual(await values(page, 'KV pages'), ['50', '30', '120']);
    assert.deepEqual(await values(page, 'Resident memory'), ['1,024 MiB']);
    const rejects = await card(page, 'Rejected requests').locator('tbody tr').allInnerTexts();
    assert.match(rejects.join(), /^queue_full\t\d+,bad_request\t2$/);

    await page.selectOption('#metrics-view select', 'a');
    assert.deepEqual(await values(page, 'Answers running'), ['1']);
    assert.deepEqual(await values(page, 'KV pages'), ['25', '15', '60']);
    assert.deepEqual(await page.locator('#metrics-view option').allInnerTexts(), ['All models', 'a', 'b"\n}']);

    // Nobody could pick from a list that is made anew each second.
    await page.evaluate(() => {
      window.select = document.querySelector('#metrics-view select');
    });
    await page.waitForTimeout(1200);
    assert.ok(await page.evaluate(() => window.select.isConnected));

    // Counters that begin anew, and a model that is gone.
    n = 0;
    await page.waitForTimeout(2200);
    assert.ok(!(await page.locator('#metrics-view').innerText()).includes('-'));

    const before = asked;
    await page.waitForTimeout(3100);
    assert.ok(asked - before >= 2 && asked - before <= 4, `${asked - before} in three seconds`);
    await page.click('#to-chat');
    await page.waitForTimeout(100);
    const left = asked;
    await page.waitForTimeout(1500);
    assert.equal(asked, left);
  });
});

test('what is no metric, or none yet, is shown as no data', async () => {
  for (const text of ['', '<html>', 'moli_requests_running', 'moli_ttft_seconds_bucket{le="+Inf"} 0\nmoli_kv_pages NaN\n', 'moli_kv_pages{model="x} 5', '{'.repeat(100_000), `a{${'b="'.repeat(30_000)}`]) {
    mock.metrics = () => text;
    await withPage(mock.url, { hash: '#metrics' }, async (page) => {
      await page.waitForSelector('.card');
      assert.deepEqual(await values(page, 'Time to first token'), ['no data', 'no data']);
      assert.deepEqual(await values(page, 'KV pages'), ['no data', 'no data', 'no data']);
    });
  }
});

test('a server that is away is told, and asked again on demand', async () => {
  mock.metrics = () => reading(1);
  await withPage(mock.url, { hash: '#metrics', failures: true }, async (page) => {
    await page.waitForSelector('.card');
    await page.route('**/metrics', (route) => route.abort());
    await page.waitForSelector('#metrics-view .error:has-text("The server cannot be reached.")');
    await page.unroute('**/metrics');
    await page.click('#metrics-view button:has-text("Retry")');
    await page.waitForSelector('.card');
  });
});

test('quantiles are those of what was observed between two readings', async () => {
  await withPage(mock.url, {}, async (page) => {
    const got = await page.evaluate(async () => {
      const { quantile } = await import('/prometheus.js');
      const of = (q, before, after) => quantile(q, new Map(before), new Map(after));
      const bounds = (...counts) => [[0.1, counts[0]], [1, counts[1]], [Infinity, counts[2]]];
      return [
        of(0.5, [], bounds(10, 10, 10)), // half of the first bucket
        of(0.5, bounds(10, 10, 10), bounds(10, 20, 20)), // what came before does not count
        of(0.5, bounds(10, 10, 10), bounds(10, 10, 10)), // nothing new
        of(0.95, [], bounds(0, 0, 5)), // beyond the last bound
        of(0.5, bounds(50, 50, 50), bounds(0, 4, 4)), // begun anew
        of(0.5, [], []),
      ].map((value) => (Number.isNaN(value) ? 'NaN' : Number(value.toFixed(6))));
    });
    assert.deepEqual(got, [0.05, 0.55, 'NaN', 1, 0.55, 'NaN']);
  });
});
