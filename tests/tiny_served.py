"""What tests ask a real Prefect server, and how long they wait for it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request


def ask(url: str, body: dict, method: str = "POST"):
    """The server's answer; again where it is too busy to give one, as Prefect's own client does."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method=method)
    for left in reversed(range(5)):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            if error.code != 503 or not left:
                raise
            time.sleep(2)
    return None


def wait_for(what, within_s: float = 90):
    """What `what` gives once it is true."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what.__name__} gave nothing within {within_s:g} s")
