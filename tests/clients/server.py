"""What the clients' tests share: where the server is, and what it says of itself."""

import os
import time
import urllib.request

URL = os.environ["MOLI_URL"]


def metric(name):
    """The value of a metric without labels, or the sum over its labels."""
    with urllib.request.urlopen(f"{URL}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def eventually(what, is_so, seconds=1.0):
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)
