// One answer: from a chat's messages to a request, and from its chunks to a message.

import { ApiError, chat as requestChat } from './api.js';

/**
 * Receives the answer to `chat` into `message`, its last one, and calls `changed` after each piece with how far it is:
 * { pieces, firstAt, lastAt }, the last two in the milliseconds of performance.now. Resolves when it has ended, in whatever
 * way: `message.state` says so.
 */
export async function receive(chat, message, settings, signal, changed) {
  const began = performance.now();
  const progress = { pieces: 0 };
  try {
    for await (const chunk of await requestChat(requestOf(chat, message, settings), signal)) {
      take(chunk, message, progress, began);
      changed(progress);
    }
    message.state = 'done';
  } catch (error) {
    const known = error instanceof ApiError ? error : new ApiError('protocol', { message: String(error) });
    if (signal.aborted) {
      message.state = 'stopped';
    } else if (known.kind === 'lost' && message.finish) {
      message.state = 'done'; // nothing of the answer is missing
    } else {
      const { kind, status, code, retryAfter } = known;
      message.error = { kind, status, code, retryAfter, message: known.message };
      message.state = 'failed';
    }
  }
}

function requestOf(chat, message, { model, sampling }) {
  const messages = [];
  if (chat.system.trim() !== '') messages.push({ role: 'system', content: chat.system });
  for (const { role, content } of chat.messages) {
    if (role === 'assistant' && content === '') continue;
    const last = messages[messages.length - 1];
    // Templates want the roles to alternate: questions that got no answer become one.
    if (last?.role === role) last.content += `\n\n${content}`;
    else messages.push({ role, content });
  }
  message.model = model;
  return { model, messages, stream: true, stream_options: { include_usage: true }, ...sampling };
}

function take(chunk, message, progress, began) {
  const choice = chunk.choices?.[0];
  const reasoning = textOf(choice?.delta?.reasoning_content);
  const content = textOf(choice?.delta?.content);
  message.reasoning += reasoning;
  if (content !== '' && message.content === '' && message.reasoning !== '') message.reasoningMs = performance.now() - began;
  message.content += content;
  if (reasoning !== '' || content !== '') {
    progress.pieces += 1;
    progress.lastAt = performance.now();
    progress.firstAt ??= progress.lastAt;
  }
  if (typeof choice?.finish_reason === 'string') message.finish = choice.finish_reason;
  if (chunk.usage) message.stats = statsOf(chunk);
}

const textOf = (value) => (typeof value === 'string' ? value : '');

/** The numbers of the last chunk that are there: tokens, tokens per second, milliseconds. */
function statsOf({ usage, timings }) {
  const all = {
    prompt: usage.prompt_tokens,
    completion: usage.completion_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens,
    rate: timings?.predicted_per_second,
    ttftMs: timings?.ttft_ms,
    queuedMs: timings?.queued_ms,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => Number.isFinite(value)));
}
