// The server's API: models, chat, metrics. Every failure is an ApiError.

import { SseParser } from './sse.js';
import { session } from './storage.js';

const KEY = 'moli.key';

/**
 * What went wrong. `kind`: 'network' (no answer), 'http' (an answer with `status`), 'lost' (the connection ended within an
 * answer), 'stream' (the server reported it within an answer), 'protocol' (not what the API says). `message` is the
 * server's own or ''; `retryAfter` is in seconds, if the server said so.
 */
export class ApiError extends Error {
  constructor(kind, { message = '', status, code, retryAfter } = {}) {
    super(message.slice(0, 2000));
    Object.assign(this, { kind, status, code, retryAfter });
  }
}

/** The key of this tab, or null. */
export const apiKey = () => session.get(KEY);
export const setApiKey = (key) => session.set(KEY, key);
export const forgetApiKey = () => session.remove(KEY);

let askForKey = async () => false;

/** Takes the function that asks for a key when the server wants one. It resolves to whether there is one now. */
export function onUnauthorised(ask) {
  askForKey = ask;
}

/** The models of the server: [{ id, context, loaded }]. */
export async function models() {
  const body = await json(await send('v1/models'));
  if (!Array.isArray(body?.data)) throw new ApiError('protocol', { message: 'a list of models without data' });
  return body.data.filter((model) => typeof model?.id === 'string');
}

/** The text of the metrics. */
export async function metricsText(signal) {
  return (await send('metrics', { signal })).text();
}

/** Begins an answer. Returns its chunks, each the object of one event, as an async generator. */
export async function chat(body, signal) {
  const response = await send('v1/chat/completions', {
    method: 'POST',
    signal,
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  });
  if (!response.headers.get('Content-Type')?.startsWith('text/event-stream')) {
    throw new ApiError('protocol', { message: `Content-Type: ${response.headers.get('Content-Type')}` });
  }
  return chunks(response);
}

async function* chunks(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder(); // holds back a character that is cut between two pieces
  const parser = new SseParser();
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) throw new ApiError('lost');
      for (const data of events(parser, decoder.decode(value, { stream: true }))) {
        if (data === '[DONE]') return;
        yield chunk(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === 'AbortError' ? error : new ApiError('lost');
  }
}

function events(parser, piece) {
  try {
    return parser.push(piece);
  } catch (error) {
    throw new ApiError('protocol', { message: error.message });
  }
}

function chunk(data) {
  let object;
  try {
    object = JSON.parse(data);
  } catch {
    throw new ApiError('protocol', { message: `not JSON: ${data.slice(0, 80)}` });
  }
  if (typeof object !== 'object' || object === null) throw new ApiError('protocol', { message: data.slice(0, 80) });
  if (object.error) throw new ApiError('stream', { message: String(object.error.message ?? ''), code: object.error.code });
  return object;
}

/** Sends a request, with the key if there is one; asks for one as long as the server wants it. */
async function send(path, init = {}) {
  for (;;) {
    const key = apiKey();
    const headers = { ...init.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(path, { cache: 'no-store', redirect: 'error', ...init, headers });
    } catch (error) {
      throw error.name === 'AbortError' ? error : new ApiError('network');
    }
    if (response.ok) return response;
    // Another request may have brought a key while this one was under way.
    if (response.status === 401 && (apiKey() !== key || (await askForKey(key)))) continue;
    throw await failure(response);
  }
}

async function failure(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Something before the server answered, with a page of its own: its status is what we know.
  }
  const message = typeof error.message === 'string' ? error.message : '';
  return new ApiError('http', { status: response.status, message, code: error.code, retryAfter: retryAfter(response) });
}

/** Seconds that the server asks to wait, which it may give as a date. */
function retryAfter(response) {
  const header = response.headers.get('Retry-After');
  if (!header) return undefined;
  const seconds = /^\d+$/.test(header) ? Number(header) : Math.ceil((Date.parse(header) - Date.now()) / 1000);
  return Number.isFinite(seconds) ? Math.max(seconds, 0) : undefined;
}

async function json(response) {
  try {
    return await response.json();
  } catch {
    throw new ApiError('protocol', { message: 'not JSON' });
  }
}
