// A server that serves the page as Moli does and answers what a test wants. `node mock.mjs` runs it for work on the page.

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const PAGE = new URL('../../crates/moli-server/page/', import.meta.url);
const CSP = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
  + "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const TYPES = { html: 'text/html; charset=utf-8', js: 'text/javascript; charset=utf-8', css: 'text/css; charset=utf-8', svg: 'image/svg+xml' };
// What the real server takes: more is an error there too.
const FIELDS = ['model', 'messages', 'stream', 'stream_options', 'temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed'];

export const MODELS = [
  { id: 'qwen3-0.6b', object: 'model', created: 1, owned_by: 'moli', context: 4096, loaded: true },
  { id: 'smollm2-135m-instruct', object: 'model', created: 1, owned_by: 'moli', context: null, loaded: false },
];

/** An answer under way: what a test sends of it. */
class Reply {
  constructor(response, body) {
    this.response = response;
    this.body = body;
    this.closed = false;
    response.on('close', () => {
      this.closed = true;
    });
  }

  begin() {
    if (!this.response.headersSent) this.response.writeHead(200, { 'Content-Type': 'text/event-stream' });
  }

  raw(bytes) {
    this.begin();
    this.response.write(bytes);
  }

  event(object) {
    this.raw(`data: ${JSON.stringify(object)}\n\n`);
  }

  text(content) {
    this.event({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });
  }

  reasoning(text) {
    this.event({ choices: [{ index: 0, delta: { reasoning_content: text }, finish_reason: null }] });
  }

  /** The end as the server sends it. */
  end({ finish = 'stop', prompt = 24, completion = 128, cached = 16 } = {}) {
    this.event({ choices: [{ index: 0, delta: {}, finish_reason: finish }] });
    this.event({
      choices: [],
      usage: { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion, prompt_tokens_details: { cached_tokens: cached } },
      timings: { queued_ms: 3, ttft_ms: 212.4, prompt_per_second: 161.1, predicted_per_second: 41.7, cache_n: cached, prompt_n: prompt, predicted_n: completion },
    });
    this.raw('data: [DONE]\n\n');
    this.response.end();
  }

  error(status, message, headers = {}) {
    this.response.writeHead(status, { 'Content-Type': 'application/json', ...headers });
    this.response.end(JSON.stringify({ error: { message, type: 'error', param: null, code: null } }));
  }
}

/** Words of an answer one by one, each after `ms`, until the client is gone. */
export async function say(reply, text, ms = 5) {
  for (const word of text.match(/\S+\s*/g) ?? []) {
    if (reply.closed) return;
    reply.text(word);
    await sleep(ms);
  }
}

/** Starts a server. Its fields may be changed at any time: `reply` (what an answer is), `key` (the one it wants), `metrics`. */
export async function startMock(port = 0) {
  const mock = {
    models: MODELS,
    key: null,
    asked: [],
    metrics: () => '',
    reply: async (reply) => {
      await say(reply, `You said: ${reply.body.messages.at(-1).content}`);
      reply.end();
    },
  };
  const server = createServer((request, response) => {
    handle(mock, request, response).catch((error) => {
      console.error(error);
      response.destroy();
    });
  });
  await new Promise((resolve) => server.listen(port, '127.0.0.1', resolve));
  mock.url = `http://127.0.0.1:${server.address().port}/`;
  mock.stop = () => {
    server.closeAllConnections();
    server.close();
  };
  return mock;
}

async function handle(mock, request, response) {
  const path = new URL(request.url, 'http://x').pathname;
  const reply = new Reply(response, null);
  const api = path.startsWith('/v1/') || path === '/metrics';
  if (api && mock.key !== null && request.headers.authorization !== `Bearer ${mock.key}`) {
    return reply.error(401, 'a key is needed');
  }
  if (path === '/v1/models') {
    response.writeHead(200, { 'Content-Type': 'application/json' });
    return response.end(JSON.stringify({ object: 'list', data: mock.models }));
  }
  if (path === '/metrics') {
    response.writeHead(200, { 'Content-Type': 'text/plain; version=0.0.4' });
    return response.end(mock.metrics());
  }
  if (path === '/v1/chat/completions') {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    reply.body = JSON.parse(Buffer.concat(pieces));
    const unknown = Object.keys(reply.body).find((field) => !FIELDS.includes(field));
    if (unknown) return reply.error(400, `unknown field ${unknown}`);
    mock.asked.push(reply.body);
    return mock.reply(reply);
  }
  return serve(path, response);
}

async function serve(path, response) {
  const name = path === '/' ? 'index.html' : path.slice(1);
  const type = TYPES[name.split('.').at(-1)];
  try {
    if (!/^[\w-]+\.\w+$/.test(name) || !type) throw new Error('not a file of the page');
    const bytes = await readFile(new URL(name, PAGE));
    response.writeHead(200, { 'Content-Type': type, 'Content-Security-Policy': CSP, 'X-Content-Type-Options': 'nosniff' });
    response.end(bytes);
  } catch {
    response.writeHead(404).end();
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { demoMetrics, demoReply } = await import('./demo.mjs');
  const mock = await startMock(Number(process.env.PORT ?? 8099));
  Object.assign(mock, { reply: demoReply, metrics: demoMetrics() });
  console.log(mock.url);
}
