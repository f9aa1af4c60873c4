"""OpenAI's own client, as it comes, on tiny models: what they say is noise, but for what a grammar holds them to."""

import asyncio
import json
import math
import os
import unittest
from typing import Literal

import openai
from pydantic import BaseModel

from moli import URL, eventually, metric

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0, timeout=60)
chat = client.chat.completions
# Noise may say that it is over at any time.
ON = {"ignore_eos": True}
HM = [{"role": "user", "content": "hm"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is outside",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Bern", "Wien"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}

CALL = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 1000, "extra_body": {}}


class Verdict(BaseModel):
    """A small answer, so that noise is soon through with it."""

    mood: Literal["good", "bad"]
    sure: bool


def ask(**fields):
    return chat.create(**{"model": "tiny", "messages": HM, "max_tokens": 8, "seed": 7, "extra_body": ON} | fields)


class Chat(unittest.TestCase):
    def test_an_answer(self):
        answer = ask()
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual(answer.usage.completion_tokens, 8)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + 8)

    def test_a_seed_gives_the_same_answer(self):
        first, again, other = (ask(seed=seed, temperature=1.0).choices[0].message.content for seed in (3, 3, 4))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)

    def test_a_stream_is_the_whole_answer(self):
        whole = ask(n=2)
        texts, reasons, usage = ["", ""], [None, None], None
        for chunk in ask(n=2, stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        self.assertEqual(texts, [choice.message.content for choice in whole.choices])
        self.assertNotEqual(texts[0], texts[1])
        self.assertEqual(reasons, ["length", "length"])
        self.assertEqual(usage.completion_tokens, 16)

    def test_the_streaming_helper(self):
        four_letters = {"extra_body": {"response_format": {"type": "regex", "regex": "[a-z]{4}"}}, "seed": 7}
        with chat.stream(model="tiny", messages=HM, **four_letters) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        self.assertIn("content.delta", kinds)
        self.assertRegex(final.choices[0].message.content, "^[a-z]{4}$")
        self.assertEqual(final.choices[0].message.content, ask(**four_letters).choices[0].message.content)

    def test_logprobs(self):
        for token in ask(logprobs=True, top_logprobs=3).choices[0].logprobs.content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertGreaterEqual(token.top_logprobs[0].logprob, token.top_logprobs[1].logprob)

    def test_a_forced_call(self):
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            answer = ask(**CALL | {"tool_choice": choice})
            call = answer.choices[0].message.tool_calls[0]
            self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
            self.assertEqual(call.function.name, "weather")
            self.assertIn(json.loads(call.function.arguments)["city"], ["Bern", "Wien"])

    def test_a_streamed_call(self):
        with chat.stream(model="tiny", messages=HM, seed=1, **CALL) as stream:
            for _ in stream:
                pass
            call = stream.get_final_completion().choices[0].message.tool_calls[0]
        # What the helper parses it does by the tool's schema.
        self.assertGreaterEqual(call.function.parsed_arguments["days"], 1)

    def test_the_answer_to_a_call_comes_back(self):
        message = ask(**CALL).choices[0].message
        results = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in message.tool_calls]
        answer = ask(messages=[*HM, message, *results], tools=[TOOL], tool_choice="none")
        self.assertEqual(answer.choices[0].message.role, "assistant")

    def test_answers_come_back_in_every_form(self):
        with chat.stream(model="tiny", messages=HM, seed=1, **CALL) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_completion()
        parsed = chat.parse(model="tiny", messages=HM, response_format=Verdict, max_tokens=1000, seed=1)
        for answer in (ask(), ask(**CALL), streamed, parsed):
            message = answer.choices[0].message
            results = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in message.tool_calls or []]
            for form in (message, message.model_dump(warnings=False), message.to_dict(warnings=False)):
                self.assertTrue(ask(messages=[*HM, form, *results]).choices)

    def test_one_call_where_only_one_is_allowed(self):
        answer = ask(**CALL, parallel_tool_calls=False)
        self.assertEqual(len(answer.choices[0].message.tool_calls), 1)

    def test_an_answer_is_parsed(self):
        answer = chat.parse(model="tiny", messages=HM, response_format=Verdict, max_tokens=1000, seed=1)
        self.assertIsInstance(answer.choices[0].message.parsed, Verdict)
        with chat.stream(model="tiny", messages=HM, response_format=Verdict, max_tokens=1000, seed=1) as stream:
            final = stream.get_final_completion()
        self.assertEqual(final.choices[0].message.parsed, answer.choices[0].message.parsed)

    def test_json_is_json(self):
        # Biased to the bytes } and ", or noise would fill strings for ever.
        answer = ask(response_format={"type": "json_object"}, extra_body={}, max_tokens=1000, logit_bias={"125": 100, "34": 5})
        self.assertIsInstance(json.loads(answer.choices[0].message.content), dict)

    def test_the_clients_own_fields(self):
        answer = ask(user="me", metadata={"a": "b"}, store=False, service_tier="auto", verbosity="medium", prompt_cache_retention="in_memory", extra_body=ON | {"priority": 1, "deadline_ms": 60000})
        # What is Moli's own comes through as well.
        self.assertFalse(answer.truncated)
        self.assertEqual(answer.timings["predicted_n"], 8)

    def test_raw_and_streaming_responses(self):
        raw = chat.with_raw_response.create(model="tiny", messages=HM, max_tokens=2)
        self.assertEqual(raw.headers["content-type"], "application/json")
        with chat.with_streaming_response.create(model="tiny", messages=HM, max_tokens=2) as response:
            self.assertEqual(response.parse().choices[0].finish_reason, "length")

    @unittest.skipIf(os.environ.get("MOLI_TEST_MODELS") == "off", "MOLI_TEST_MODELS=off: no real model")
    def test_words_that_make_sense(self):
        question = [{"role": "user", "content": "What is 2+2?"}]
        answer = chat.create(model="smollm2", messages=question, temperature=0, max_tokens=20)
        self.assertIn("4", answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].finish_reason, "stop")


class Completions(unittest.TestCase):
    def test_texts_are_continued(self):
        fields = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 4, "seed": 1, "logprobs": 2}
        whole = client.completions.create(**fields)
        self.assertEqual([choice.index for choice in whole.choices], [0, 1])
        self.assertEqual(len(whole.choices[0].logprobs.token_logprobs), 4)
        texts = ["", ""]
        for chunk in client.completions.create(**fields, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        self.assertEqual(texts, [choice.text for choice in whole.choices])

    def test_an_echo(self):
        answer = client.completions.create(model="tiny", prompt="abc", max_tokens=2, echo=True)
        self.assertTrue(answer.choices[0].text.startswith("abc"))


class Responses(unittest.TestCase):
    ASK = {"model": "tiny", "input": "hm", "max_output_tokens": 16, "extra_body": {"seed": 7}}
    TOOL = {"type": "function", **TOOL["function"]}

    def test_an_answer(self):
        answer = client.responses.create(**self.ASK, instructions="Be brief.", service_tier="auto", include=["reasoning.encrypted_content"], metadata={"a": "b"})
        self.assertEqual(answer.status, "incomplete")
        self.assertEqual(answer.incomplete_details.reason, "max_output_tokens")
        self.assertEqual(answer.usage.output_tokens, 16)
        self.assertEqual(answer.metadata, {"a": "b"})
        self.assertTrue(answer.output_text)

    def test_a_stream_is_the_whole_answer(self):
        with client.responses.stream(**self.ASK) as stream:
            events = list(stream)
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        whole = client.responses.create(**self.ASK)
        self.assertEqual(events[-1].type, f"response.{whole.status}")
        self.assertEqual(text, events[-1].response.output_text)
        self.assertEqual(text, whole.output_text)

    def test_a_call_and_its_answer(self):
        ask = self.ASK | {"max_output_tokens": 1000, "tools": [self.TOOL]}
        answer = client.responses.create(**ask, tool_choice="required")
        call = next(item for item in answer.output if item.type == "function_call")
        self.assertIn(json.loads(call.arguments)["city"], ["Bern", "Wien"])
        with client.responses.stream(**ask, tool_choice={"type": "function", "name": "weather"}) as stream:
            done = [event for event in stream if event.type == "response.function_call_arguments.done"]
            self.assertGreaterEqual(json.loads(done[0].arguments)["days"], 1)
            self.assertEqual(stream.get_final_response().output[0].name, "weather")
        history = [*HM, *answer.output, {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
        again = client.responses.create(**self.ASK | {"input": history, "tools": [self.TOOL]})
        self.assertTrue(again.output)

    def test_an_answer_is_parsed(self):
        ask = self.ASK | {"max_output_tokens": 1000}
        answer = client.responses.parse(**ask, text_format=Verdict)
        self.assertIsInstance(answer.output_parsed, Verdict)
        for form in (answer.output[0], answer.output[0].to_dict(), answer.output[0].model_dump()):
            self.assertTrue(client.responses.create(**self.ASK | {"input": [*HM, form]}).output)
        with client.responses.stream(**ask, text_format=Verdict) as stream:
            self.assertIsInstance(stream.get_final_response().output_parsed, Verdict)


class Embeddings(unittest.TestCase):
    def test_both_forms_are_the_same_vectors(self):
        # The client asks for base64 when nobody asks for anything.
        ask = {"model": "embedding", "input": ["one", "two"]}
        coded = client.embeddings.create(**ask)
        plain = client.embeddings.create(**ask, encoding_format="float")
        self.assertEqual(len(coded.data[0].embedding), 256)
        for a, b in zip(coded.data, plain.data):
            self.assertAlmostEqual(math.dist(a.embedding, b.embedding), 0, places=6)
            self.assertAlmostEqual(math.hypot(*a.embedding), 1, places=5)
        self.assertNotEqual(plain.data[0].embedding, plain.data[1].embedding)
        self.assertEqual(coded.usage.prompt_tokens, 6)

    def test_fewer_numbers(self):
        vector = client.embeddings.create(model="embedding", input="one", dimensions=64).data[0].embedding
        self.assertEqual(len(vector), 64)
        self.assertAlmostEqual(math.hypot(*vector), 1, places=5)


class Models(unittest.TestCase):
    def test_models(self):
        self.assertLessEqual({"tiny", "embedding"}, {model.id for model in client.models.list()})
        self.assertEqual(client.models.retrieve("tiny").object, "model")
        with self.assertRaises(openai.NotFoundError):
            client.models.retrieve("none")


class Errors(unittest.TestCase):
    def refused(self, kind, **fields):
        with self.assertRaises(kind) as caught:
            ask(**fields)
        return caught.exception

    def test_no_such_model(self):
        error = self.refused(openai.NotFoundError, model="none")
        self.assertEqual((error.code, error.param, error.type), ("model_not_found", "model", "not_found_error"))

    def test_wrong_values_are_named(self):
        for fields, param in [
            ({"temperature": -1}, "temperature"),
            ({"top_logprobs": 3}, "top_logprobs"),
            ({"n": 0}, "n"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"extra_body": {"frobnicate": 1}}, "frobnicate"),
            ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}, "extra_body": {}}, "response_format"),
        ]:
            with self.subTest(param):
                self.assertEqual(self.refused(openai.BadRequestError, **fields).param, param)

    def test_a_prompt_that_is_too_long(self):
        error = self.refused(openai.BadRequestError, messages=[{"role": "user", "content": "a" * 5000}])
        self.assertEqual(error.code, "context_length_exceeded")

    def test_a_timeout(self):
        with self.assertRaises(openai.APITimeoutError):
            client.with_options(timeout=0.05).chat.completions.create(model="tiny", messages=HM, max_tokens=900, extra_body=ON)
        eventually("nothing runs", lambda: metric("moli_requests_running") == 0)


class Streams(unittest.TestCase):
    LONG = {"max_tokens": 900, "extra_body": ON}

    def test_who_leaves_frees_the_place(self):
        stream = ask(**self.LONG, stream=True)
        next(iter(stream))
        eventually("it runs", lambda: metric("moli_requests_running") == 1)
        stream.close()
        eventually("nothing runs", lambda: metric("moli_requests_running") == 0)

    def test_many_at_once(self):
        async def one(own, seed):
            answer = await own.chat.completions.create(model="tiny", messages=HM, max_tokens=8, seed=seed, temperature=1)
            return answer.choices[0].message.content

        async def streamed(own, seed):
            stream = await own.chat.completions.create(model="tiny", messages=HM, max_tokens=8, seed=seed, temperature=1, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

        async def all_of_them():
            async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0, timeout=60) as own:
                asked = [call(own, seed) for seed in range(16) for call in (one, streamed)]
                return await asyncio.gather(*asked)

        answers = asyncio.run(all_of_them())
        self.assertEqual(answers[0::2], answers[1::2])
        self.assertGreater(len(set(answers)), 10)

    def test_who_leaves_an_async_stream_frees_the_place(self):
        async def leave():
            async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0) as own:
                stream = await own.chat.completions.create(model="tiny", messages=HM, stream=True, **self.LONG)
                async for _ in stream:
                    break
                await stream.close()

        asyncio.run(leave())
        eventually("nothing runs", lambda: metric("moli_requests_running") == 0)


if __name__ == "__main__":
    unittest.main()
