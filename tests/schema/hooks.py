"""Leads schemathesis's requests past what a schema can't say, so that more of them come to an answer."""

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


def messages(body):
    found = body.get("messages")
    return [message for message in found if isinstance(message, dict)] if isinstance(found, list) else []
