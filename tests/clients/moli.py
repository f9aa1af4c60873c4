"""What the tests of all clients share: where the server is, what it serves, and what it counts."""

import os
import re
import time
import unittest
import urllib.request

URL = os.environ["MOLI_URL"].rstrip("/")
# What it says makes sense, more or less.
MODEL = "smollm2"
# Noise, but it thinks, and calls tools where it has to.
TINY = "thinking"
# Noise as well; it stays loaded.
KEPT = "tiny"
# To be loaded and unloaded.
SPARE = "spare"

# What a tool takes, and nothing else.
CRAB = {
    "type": "object",
    "properties": {"at": {"type": "string", "enum": ["é🦀"]}},
    "required": ["at"],
    "additionalProperties": False,
}
# What a person is.
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def metric(name, **labels):
    """A number of /metrics, the sum of those that have these labels among theirs; 0 where it was not counted yet."""
    with urllib.request.urlopen(f"{URL}/metrics") as response:
        lines = response.read().decode().splitlines()
    total = 0.0
    for line in lines:
        found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if found and found[1] == name and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found[2] or "")).items():
            total += float(found[3])
    return total


def eventually(what, is_so, seconds=1.0):
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


class ClientTest(unittest.TestCase):
    """A test that may leave in the middle of an answer."""

    def setUp(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{URL}/ready").close()
                return
            except OSError:
                time.sleep(0.1)
        self.fail(f"{URL} is not ready")

    def cancelled(self):
        return metric("moli_answers_total", model=MODEL, how="cancelled")

    def assert_freed(self, before):
        """One more answer than `before` was cancelled, and nobody is answered any more."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self.cancelled() == before + 1 and metric("moli_requests_running", model=MODEL) == 0:
                return
            time.sleep(0.05)
        self.fail(f"{self.cancelled() - before} answers were cancelled, and {metric('moli_requests_running', model=MODEL)} go on")
