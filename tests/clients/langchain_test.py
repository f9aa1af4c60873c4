"""LangChain's client for OpenAI's API, as it comes."""

import math
import unittest
from typing import Literal
from unittest import mock

import openai
import tiktoken
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from moli import URL

SERVER = {"base_url": f"{URL}/v1", "api_key": "unused", "max_retries": 0, "timeout": 60}


@tool
def weather(city: Literal["Bern", "Wien"], days: Literal[1, 2, 3]) -> str:
    """How it is outside."""
    return f"rain in {city} for {days} days"


class Verdict(BaseModel):
    """A small answer."""

    mood: Literal["good", "bad"]
    sure: bool


def model(**fields):
    return ChatOpenAI(**SERVER | {"model": "tiny", "seed": 7, "max_tokens": 1000} | fields)


class Chat(unittest.TestCase):
    def test_an_answer(self):
        answer = model(max_tokens=8).invoke([SystemMessage("Be brief."), HumanMessage("hm")])
        self.assertEqual(answer.usage_metadata["total_tokens"], answer.usage_metadata["input_tokens"] + answer.usage_metadata["output_tokens"])
        self.assertEqual(answer.response_metadata["model_name"], "tiny")

    def test_a_stream_is_the_whole_answer(self):
        own = model(max_tokens=8, stream_usage=True)
        chunks = list(own.stream("hm"))
        self.assertEqual("".join(chunk.content for chunk in chunks), own.invoke("hm").content)
        self.assertTrue(any(chunk.usage_metadata for chunk in chunks))

    def test_calls_and_their_answers(self):
        bound = model().bind_tools([weather], tool_choice="weather", strict=True)
        answer = bound.invoke("hm")
        call = answer.tool_calls[0]
        result = weather.invoke(call)
        self.assertIsInstance(result, ToolMessage)
        again = model(max_tokens=8).invoke([HumanMessage("hm"), answer, result])
        self.assertIn("finish_reason", again.response_metadata)
        streamed = None
        for chunk in model().bind_tools([weather], tool_choice="required").stream("hm"):
            streamed = chunk if streamed is None else streamed + chunk
        self.assertIn(streamed.tool_calls[0]["args"]["city"], ["Bern", "Wien"])

    def test_structured_output(self):
        for method in ("json_schema", "function_calling"):
            with self.subTest(method):
                self.assertIsInstance(model().with_structured_output(Verdict, method=method).invoke("hm"), Verdict)

    def test_the_responses_api(self):
        # OpenAI has no seed here; Moli has, as everywhere.
        own = model(use_responses_api=True, seed=None, extra_body={"seed": 7})
        self.assertIsInstance(own.with_structured_output(Verdict).invoke("hm"), Verdict)
        call = own.bind_tools([weather], tool_choice="weather").invoke("hm").tool_calls[0]
        self.assertIn(call["args"]["city"], ["Bern", "Wien"])
        self.assertTrue("".join(chunk.text for chunk in own.stream("hm")))


class Embeddings(unittest.TestCase):
    def test_texts(self):
        own = OpenAIEmbeddings(**SERVER, model="embedding", check_embedding_ctx_length=False)
        vectors = own.embed_documents(["one", "two"])
        self.assertAlmostEqual(math.hypot(*vectors[0]), 1, places=5)
        self.assertAlmostEqual(math.dist(vectors[0], own.embed_query("one")), 0, places=6)
        self.assertNotEqual(vectors[0], vectors[1])

    def test_the_tokens_of_another_tokenizer_are_refused(self):
        # Unless it is told not to, it sends ids of OpenAI's vocabulary, which mean other texts here or none at all. That
        # vocabulary is fetched from the web; this one has larger ids than the model, as that one has than most.
        foreign = tiktoken.Encoding("foreign", pat_str=r"\w+|\W", mergeable_ranks={bytes([byte]): 1000 + byte for byte in range(256)}, special_tokens={})
        own = OpenAIEmbeddings(**SERVER, model="embedding")
        with mock.patch("tiktoken.get_encoding", return_value=foreign), self.assertRaises(openai.BadRequestError) as caught:
            own.embed_query("one")
        self.assertEqual(caught.exception.code, "invalid_token")


if __name__ == "__main__":
    unittest.main()
