// A browser and a page in it that is watched: whatever a page of ours must never do is a fault.

import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

let browser;

/** The browser that all tests of a file share. */
async function theBrowser() {
  browser ??= await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: process.getuid() === 0 ? ['--no-sandbox'] : [],
  });
  return browser;
}

export async function closeBrowser() {
  await browser?.close();
}

/**
 * Opens the page at `url` in a context of its own and runs `test(page)`. Then there must have been no dialog, no request to
 * anybody else, no error or warning on the console, and no violation of the policy. `options` are Playwright's, and
 * `failures: true` where the server's answers with an error status are part of the test, `settings` that the page has at first,
 * and `hash` for a view.
 */
export async function withPage(url, options, test) {
  const { failures = false, hash = '', settings, ...context } = options;
  const opened = await (await theBrowser()).newContext({ locale: 'en-US', viewport: { width: 1280, height: 800 }, ...context });
  const faults = [];
  const page = await opened.newPage();
  page.setDefaultTimeout(15_000);
  page.on('dialog', (dialog) => {
    faults.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on('popup', (popup) => faults.push(`popup: ${popup.url()}`));
  page.on('pageerror', (error) => faults.push(`error: ${error.stack}`));
  page.on('console', (message) => {
    const expected = failures && /^Failed to load resource/.test(message.text());
    if (['error', 'warning'].includes(message.type()) && !expected) faults.push(`console: ${message.text()}`);
  });
  opened.on('request', (request) => {
    if (!request.url().startsWith(url)) faults.push(`request: ${request.url().slice(0, 200)}`);
  });
  await page.addInitScript(() => {
    addEventListener('securitypolicyviolation', (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
  });
  await page.addInitScript((given) => {
    if (given && !localStorage.getItem('moli.settings')) localStorage.setItem('moli.settings', JSON.stringify(given));
  }, settings);
  try {
    await page.goto(url + hash);
    await page.waitForFunction(() => document.querySelector('#model option'));
    await test(page);
    assert.deepEqual(faults, []);
  } finally {
    await opened.close();
  }
}

/** Sends a message and waits until the answer has ended. */
export async function ask(page, text) {
  await page.fill('#prompt', text);
  await page.press('#prompt', 'Enter');
  await ended(page);
}

/** Waits until the last answer has ended. */
export async function ended(page) {
  await page.waitForSelector('#send:not([hidden])');
  await page.waitForSelector('.answer:last-child[aria-busy=false]');
}

export const questions = (page) => page.locator('.question .plain').allTextContents();
export const lastAnswer = (page) => page.locator('.answer .markdown').last().innerText();

/** Shows a text as an answer would be shown, without a server; returns the milliseconds that took, layout included. */
export function render(page, text) {
  return page.evaluate(async (source) => {
    const { MarkdownView } = await import('/markdown.js');
    const messages = document.getElementById('messages');
    const root = document.createElement('div');
    root.className = 'markdown';
    const message = document.createElement('article');
    message.className = 'message';
    message.append(root);
    messages.replaceChildren(message);
    const began = performance.now();
    new MarkdownView(root).set(source);
    root.getBoundingClientRect();
    return performance.now() - began;
  }, text);
}
