// Makes the pictures of docs/page, in the folder that is named (default: docs/page): light in English, dark in Chinese, a
// phone, and the metrics.

import { mkdir } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { demoMetrics, demoReply } from './demo.mjs';
import { ask, closeBrowser, withPage } from './harness.mjs';
import { startMock } from './mock.mjs';

const folder = process.argv[2] ?? fileURLToPath(new URL('../../docs/page/', import.meta.url));
await mkdir(folder, { recursive: true });
const mock = await startMock();
Object.assign(mock, { reply: demoReply, metrics: demoMetrics() });
const picture = (page, name) => page.screenshot({ path: `${folder}/${name}.png` });
const fast = (page) => page.addInitScript(() => {
  // The metrics of two minutes in a few seconds.
  const { setTimeout } = window;
  window.setTimeout = (run, ms, ...rest) => setTimeout(run, ms === 1000 ? 20 : ms, ...rest);
});

const ENGLISH = 'The pump in hall 2 reports low flow. What do I check first?';
const CHINESE = '二号车间的泵报告流量偏低，应该先检查什么？';

try {
  await withPage(mock.url, { viewport: { width: 1200, height: 820 }, colorScheme: 'light' }, async (page) => {
    await ask(page, ENGLISH);
    await picture(page, 'light');
  });
  await withPage(mock.url, { viewport: { width: 1200, height: 820 }, colorScheme: 'dark', locale: 'zh-CN' }, async (page) => {
    await ask(page, CHINESE);
    await page.click('#toggle-settings');
    await page.click('.reasoning summary');
    await picture(page, 'dark');
  });
  const phone = { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true };
  await withPage(mock.url, phone, async (page) => {
    await ask(page, ENGLISH);
    await picture(page, 'phone');
  });
  await withPage(mock.url, { viewport: { width: 1200, height: 820 } }, async (page) => {
    await fast(page);
    await page.goto('about:blank');
    await page.goto(`${mock.url}#metrics`);
    await page.waitForTimeout(6000);
    await picture(page, 'metrics');
  });
} finally {
  await closeBrowser();
  mock.stop();
}
