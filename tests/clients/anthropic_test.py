"""The package `anthropic` against Moli."""

import asyncio
import json

import anthropic

from moli import CRAB, MODEL, PERSON, TINY, URL, ClientTest

# The package has no argument for it any more.
GREEDY = {"temperature": 0}
ALPHABET = "List the first three letters of the alphabet"
TOOL = {"name": "look", "description": "Looks there", "input_schema": CRAB}


def user(content):
    return {"role": "user", "content": content}


class AnthropicTest(ClientTest):
    def setUp(self):
        super().setUp()
        self.client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
        self.addCleanup(self.client.close)

    def ask(self, content=ALPHABET, body=GREEDY, **more):
        asked = {"model": MODEL, "max_tokens": 24, "messages": [user(content)], **more}
        return self.client.messages.create(**asked, extra_body=body)

    def test_a_streamed_answer_is_the_whole_one(self):
        whole = self.ask()
        self.assertIn("A, B, and C", whole.content[0].text)
        self.assertEqual((whole.type, whole.role, whole.model), ("message", "assistant", MODEL))
        self.assertTrue(whole._request_id.startswith("req_"))
        self.assertTrue(whole.id.startswith("msg_"))
        asked = {"model": MODEL, "max_tokens": 24, "messages": [user(ALPHABET)]}
        with self.client.messages.stream(**asked, extra_body=GREEDY) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual((text, final.content[0].text), (whole.content[0].text,) * 2)
        self.assertEqual(final.stop_reason, whole.stop_reason)
        for usage in (whole.usage, final.usage):
            self.assertEqual(usage.input_tokens + usage.cache_read_input_tokens, self.count())
            self.assertEqual(usage.output_tokens, whole.usage.output_tokens)
        kinds = [event.type for event in self.ask(stream=True)]
        self.assertEqual(kinds[:2], ["message_start", "content_block_start"])
        self.assertEqual(kinds[-3:], ["content_block_stop", "message_delta", "message_stop"])

    def count(self):
        messages = [user(ALPHABET)]
        return self.client.messages.count_tokens(model=MODEL, messages=messages).input_tokens

    def test_how_answers_end(self):
        self.assertEqual(self.ask("Count to one hundred.", max_tokens=4).stop_reason, "max_tokens")
        stopped = self.ask(stop_sequences=["B, and"])
        self.assertEqual((stopped.stop_reason, stopped.stop_sequence), ("stop_sequence", "B, and"))
        self.assertNotIn("B", stopped.content[0].text)
        self.assertEqual(self.ask(max_tokens=0).content, [])

    def test_tools_there_and_back(self):
        asked = {"model": MODEL, "tools": [TOOL], "max_tokens": 200, "extra_body": GREEDY}
        for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "look"}):
            with self.client.messages.stream(messages=[user("Look!")], tool_choice=choice, **asked) as stream:
                answer = stream.get_final_message()
            self.assertEqual(answer.stop_reason, "tool_use")
            (call,) = answer.content
            self.assertEqual((call.type, call.name, call.input), ("tool_use", "look", {"at": "é🦀"}))
            result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "a crab"}]}
            messages = [user("Look!"), {"role": "assistant", "content": answer.content}, user([result])]
            self.assertTrue(self.client.messages.create(messages=messages, **asked).content)

    def test_json(self):
        config = {"format": {"type": "json_schema", "schema": PERSON}}
        answer = self.ask("Tell me of a person.", output_config=config, max_tokens=200)
        self.assertEqual(set(json.loads(answer.content[0].text)), {"name", "age"})
        self.assertEqual(answer.stop_reason, "end_turn")

    def test_thoughts_there_and_back(self):
        asked = {"model": TINY, "max_tokens": 200, "thinking": {"type": "enabled", "budget_tokens": 8}, "extra_body": GREEDY}
        with self.client.messages.stream(messages=[user("Hm")], **asked) as stream:
            answer = stream.get_final_message()
        thought = answer.content[0]
        self.assertEqual(thought.type, "thinking")
        self.assertTrue(thought.thinking and thought.signature)
        messages = [user("Hm"), {"role": "assistant", "content": answer.content}, user("And?")]
        self.assertEqual(self.client.messages.create(messages=messages, **asked).content[0].type, "thinking")

    def test_prompts_are_cached(self):
        system = [{"type": "text", "text": "You know crabs. " * 60, "cache_control": {"type": "ephemeral"}}]
        self.ask("Hi", system=system, max_tokens=1)
        usage = self.ask("Hello", system=system, max_tokens=1).usage
        self.assertGreater(usage.cache_read_input_tokens, 200)
        self.assertLess(usage.input_tokens, 60)

    def test_the_beta_client(self):
        asked = {"model": MODEL, "max_tokens": 8, "messages": [user("Hi")]}
        self.assertEqual(self.client.beta.messages.create(**asked).role, "assistant")

    def test_errors(self):
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
        for kind, words, more in [
            (anthropic.NotFoundError, "no model", {"model": "nothing"}),
            (anthropic.BadRequestError, "context", {"content": "x " * 5000}),
            (anthropic.BadRequestError, "image", {"content": [image]}),
            (anthropic.BadRequestError, "surprise", {"body": {"surprise": 1}}),
            (anthropic.BadRequestError, "web_search", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            (anthropic.BadRequestError, "temperature", {"body": {"temperature": -1}}),
            (anthropic.BadRequestError, "temperature", {"body": {"temperature": -1}, "stream": True}),
        ]:
            with self.assertRaises(kind) as raised:
                self.ask(**more)
            self.assertIn(words, raised.exception.body["error"]["message"])
            self.assertEqual(raised.exception.request_id, raised.exception.body["request_id"])

    def test_whoever_leaves_is_not_answered_any_more(self):
        before = self.cancelled()
        stream = self.ask("Tell a very long story.", max_tokens=4000, stream=True)
        for event in stream:
            if event.type == "content_block_delta":
                break
        stream.close()
        self.assert_freed(before)

    def test_many_at_once(self):
        async def ask_all():
            async with anthropic.AsyncAnthropic(base_url=URL, api_key="none", max_retries=0) as client:

                async def ask(number):
                    asked = {"model": MODEL, "max_tokens": 16, "messages": [user(f"Count to {number}.")]}
                    async with client.messages.stream(**asked, extra_body=GREEDY) as stream:
                        return (await stream.get_final_message()).content[0].text

                return await asyncio.gather(*(ask(number) for number in range(6)))

        alone = [self.ask(f"Count to {number}.", max_tokens=16).content[0].text for number in range(6)]
        self.assertEqual(asyncio.run(ask_all()), alone)
