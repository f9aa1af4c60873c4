"""Leads schemathesis's requests past what a schema can't say, so that more of them come to an answer."""

import struct

import schemathesis

EMBEDS = ("/v1/embeddings", "/v1/rerank")


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if isinstance(body, dict):
        # One that is served: others come to nothing but 404.
        if isinstance(body.get("model"), str):
            body["model"] = "embedding" if case.path in EMBEDS else "tiny"
        if not body.get("stream"):
            body.pop("stream_options", None)
        for message in messages(body):
            if message.get("content") is None:
                message["content"] = "hm"


@schemathesis.hook
def filter_body(context, body):
    """The server's numbers are of single precision: what is nearer to a bound than that is the bound to it."""
    return not any(near_whole(number) for number in floats(body))


def near_whole(number):
    try:
        single = struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return False
    return single != number and single.is_integer()


def floats(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from floats(inner)
    elif isinstance(value, float):
        yield value


def messages(body):
    found = body.get("messages")
    return [message for message in found if isinstance(message, dict)] if isinstance(found, list) else []
