"""The package `ollama` against Moli."""

import asyncio
import json

import ollama

from moli import KEPT, MODEL, PERSON, SPARE, TINY, URL, ClientTest

OPTIONS = {"temperature": 0, "num_predict": 24}


def look(at: str) -> str:
    """Looks there.

    Args:
        at: where
    """
    return f"a crab at {at}"


def user(text):
    return {"role": "user", "content": text}


class OllamaTest(ClientTest):
    def setUp(self):
        super().setUp()
        self.client = ollama.Client(host=URL)
        self.addCleanup(self.client._client.close)

    def test_a_streamed_chat_is_the_whole_one(self):
        messages = [user("List the first three letters of the alphabet")]
        whole = self.client.chat(MODEL, messages, options=OPTIONS)
        self.assertIn("A, B, and C", whole.message.content)
        self.assertEqual((whole.message.role, whole.model, whole.done), ("assistant", MODEL, True))
        parts = list(self.client.chat(MODEL, messages, options=OPTIONS, stream=True))
        self.assertGreater(len(parts), 3)
        self.assertEqual("".join(part.message.content for part in parts), whole.message.content)
        self.assertEqual(
            [(part.done, part.done_reason) for part in parts[-2:]], [(False, None), (True, whole.done_reason)]
        )
        for answer in (whole, parts[-1]):
            self.assertGreater(answer.prompt_eval_count, 10)
            self.assertGreater(answer.eval_count, 1)
            spent = answer.load_duration + answer.prompt_eval_duration + answer.eval_duration
            self.assertLessEqual(spent, answer.total_duration)
            self.assertGreater(answer.eval_duration, 0)

    def test_a_text_is_continued(self):
        whole = self.client.generate(MODEL, "The capital of France is", raw=True, options=OPTIONS)
        self.assertIn("Paris", whole.response)
        parts = self.client.generate(MODEL, "The capital of France is", raw=True, options=OPTIONS, stream=True)
        self.assertEqual("".join(part.response for part in parts), whole.response)
        answer = self.client.generate(MODEL, "Say hello.", system="You are polite.", options=OPTIONS)
        self.assertTrue(answer.response)

    def test_seeds_and_logprobs(self):
        options = {"seed": 5, "temperature": 1.5, "num_predict": 12}
        ask = lambda: self.client.chat(MODEL, [user("Hi")], options=options, logprobs=True, top_logprobs=2)
        first, second = ask(), ask()
        self.assertEqual(first.message.content, second.message.content)
        self.assertEqual(first.logprobs, second.logprobs)
        self.assertEqual(len(first.logprobs[0].top_logprobs), 2)

    def test_json(self):
        options = {"temperature": 0, "num_predict": 200}
        answer = self.client.chat(MODEL, [user("Tell me of a person.")], format=PERSON, options=options)
        person = json.loads(answer.message.content)
        self.assertEqual(set(person), {"name", "age"})
        answer = self.client.generate(MODEL, "A person as JSON:", format="json", options=options)
        self.assertIn("{", answer.response)

    def test_tools(self):
        # Nothing in this API makes a model call: what it called stands in the conversation.
        call = {"function": {"name": "look", "arguments": {"at": "é🦀"}}}
        messages = [
            user("What is there?"),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": look("é🦀"), "tool_name": "look"},
        ]
        for model in (MODEL, TINY):
            told = self.client.chat(model, messages, tools=[look], options=OPTIONS, think=False)
            untold = self.client.chat(model, messages, options=OPTIONS, think=False)
            self.assertGreater(told.prompt_eval_count, untold.prompt_eval_count)

    def test_thoughts(self):
        answer = self.client.chat(TINY, [user("Hm")], think=True, options=OPTIONS)
        self.assertTrue(answer.message.thinking)
        parts = list(self.client.chat(TINY, [user("Hm")], think=True, options=OPTIONS, stream=True))
        self.assertEqual("".join(part.message.thinking or "" for part in parts), answer.message.thinking)
        answer = self.client.chat(TINY, [user("Hm")], think=False, options=OPTIONS)
        self.assertIsNone(answer.message.thinking)
        self.assertTrue(answer.message.content)

    def test_models(self):
        listed = {model.model: model for model in self.client.list().models}
        self.assertLessEqual({MODEL, TINY, SPARE}, set(listed))
        self.assertGreater(listed[MODEL].size, 50_000_000)
        self.assertEqual(len(listed[MODEL].digest), 64)
        self.assertEqual(listed[MODEL].details.family, "llama")
        self.assertEqual(listed[MODEL].details.parameter_size, "134.52M")
        self.assertGreater(listed[MODEL].modified_at.year, 2000)
        shown = self.client.show(MODEL)
        self.assertIn("<|im_start|>", shown.template)
        self.assertIn("completion", shown.capabilities)
        self.assertEqual(shown.modelinfo["general.architecture"], "llama")
        self.assertIn("thinking", self.client.show(TINY).capabilities)

    def test_loading_and_unloading(self):
        loaded = lambda: {model.model: model for model in self.client.ps().models}
        self.assertEqual(self.client.generate(SPARE, keep_alive="10m").done_reason, "load")
        self.assertIn(SPARE, loaded())
        self.assertEqual(loaded()[KEPT].context_length, 2048)
        self.assertGreater(loaded()[KEPT].expires_at.year, 2200)
        self.assertEqual(self.client.generate(SPARE, keep_alive=0).done_reason, "unload")
        self.assertNotIn(SPARE, loaded())

    def test_errors(self):
        for status, words, ask in [
            (404, "no model", lambda: self.client.chat("nothing", [user("Hi")])),
            (404, "no model", lambda: self.client.show("nothing")),
            (400, "num_gpu", lambda: self.client.chat(MODEL, [user("Hi")], options={"num_gpu": 1})),
            (400, "images", lambda: self.client.chat(MODEL, [{**user("Hi"), "images": [b"x"]}])),
            (400, "suffix", lambda: self.client.generate(MODEL, "x", suffix="y")),
            (400, "context", lambda: self.client.generate(MODEL, "x " * 5000)),
            (501, "moli pull", lambda: self.client.pull("nothing")),
            (501, "moli rm", lambda: self.client.delete("nothing")),
        ]:
            with self.assertRaises(ollama.ResponseError) as raised:
                ask()
            self.assertEqual(raised.exception.status_code, status)
            self.assertIn(words, raised.exception.error)

    def test_whoever_leaves_is_not_answered_any_more(self):
        before = self.cancelled()
        stream = self.client.chat(MODEL, [user("Tell a very long story.")], stream=True)
        next(stream)
        stream.close()
        self.assert_freed(before)

    def test_many_at_once(self):
        async def ask(client, number):
            text = ""
            async for part in await client.chat(MODEL, [user(f"Count to {number}.")], options=OPTIONS, stream=True):
                text += part.message.content
            return text

        async def ask_all():
            client = ollama.AsyncClient(host=URL)
            return await asyncio.gather(*(ask(client, number) for number in range(6)))

        alone = [self.client.chat(MODEL, [user(f"Count to {n}.")], options=OPTIONS).message.content for n in range(6)]
        self.assertEqual(asyncio.run(ask_all()), alone)
