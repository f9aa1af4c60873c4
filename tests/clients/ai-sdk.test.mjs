// Vercel's AI SDK, as it comes.

import assert from "node:assert/strict";
import test from "node:test";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const moli = createOpenAICompatible({
  name: "moli",
  baseURL: `${process.env.MOLI_URL}/v1`,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const ask = { model: moli("tiny"), prompt: "hm", seed: 7, maxRetries: 0 };
const weather = tool({
  description: "How it is outside",
  inputSchema: z.object({ city: z.enum(["Bern", "Wien"]), days: z.int().min(1).max(9) }),
  execute: async ({ city, days }) => `rain in ${city} for ${days} days`,
});

test("an answer, whole and as it comes", async () => {
  const whole = await generateText({ ...ask, maxOutputTokens: 8 });
  assert.ok(whole.usage.inputTokens > 0);
  const stream = streamText({ ...ask, maxOutputTokens: 8 });
  let text = "";
  for await (const delta of stream.textStream) text += delta;
  assert.equal(text, whole.text);
  assert.equal(await stream.finishReason, whole.finishReason);
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
});

test("a call, whose answer goes back", async () => {
  const answer = await generateText({
    ...ask,
    maxOutputTokens: 1000,
    tools: { weather },
    toolChoice: "required",
    stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => (stepNumber === 0 ? {} : { toolChoice: "none" }),
  });
  assert.equal(answer.steps.length, 2);
  assert.match(answer.steps[0].toolResults[0].output, /^rain in (Bern|Wien)/);
  assert.equal(answer.steps[0].finishReason, "tool-calls");
});

test("a call as it comes", async () => {
  const stream = streamText({ ...ask, maxOutputTokens: 1000, tools: { weather }, toolChoice: { type: "tool", toolName: "weather" } });
  const calls = await stream.toolCalls;
  assert.equal(calls.length, 1);
  assert.ok(calls[0].input.days >= 1);
});

test("an object of a schema", async () => {
  const schema = z.object({ mood: z.enum(["good", "bad"]), sure: z.boolean() });
  const { object } = await generateObject({ ...ask, maxOutputTokens: 1000, schema });
  assert.equal(typeof object.sure, "boolean");
  const { output } = await generateText({ ...ask, maxOutputTokens: 1000, output: Output.object({ schema }) });
  assert.deepEqual(output, object);
});

test("vectors", async () => {
  const { embeddings } = await embedMany({ model: moli.embeddingModel("embedding"), values: ["one", "two"], maxRetries: 0 });
  assert.equal(embeddings.length, 2);
  assert.ok(Math.abs(Math.hypot(...embeddings[0]) - 1) < 1e-5);
});

test("errors, and whoever leaves", async () => {
  await assert.rejects(generateText({ ...ask, model: moli("none") }), (error) => error.statusCode === 404 && /there is no model/.test(error.message));
  const leave = new AbortController();
  const stream = streamText({
    ...ask,
    maxOutputTokens: 1500,
    providerOptions: { moli: { ignore_eos: true } },
    abortSignal: leave.signal,
    onError: () => {},
  });
  for await (const _ of stream.textStream) break;
  leave.abort();
  const end = Date.now() + 1000;
  for (;;) {
    const metrics = await (await fetch(`${process.env.MOLI_URL}/metrics`)).text();
    const running = [...metrics.matchAll(/^moli_requests_running\S* (\d+)$/gm)].reduce((sum, found) => sum + Number(found[1]), 0);
    if (running === 0) break;
    assert.ok(Date.now() < end, "it still runs after a second");
  }
});
