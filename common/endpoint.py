"""Chat endpoints in the form that most servers have (OpenAI's)."""

import json
import os
import urllib.request
from collections.abc import Mapping
from typing import Any


def chat_request(url: str, key_variable: str, body: Mapping[str, Any]) -> urllib.request.Request:
    """A POST to ``url``'s chat completions, with the key in that environment variable if it is set."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(key_variable):
        headers["Authorization"] = f"Bearer {key}"
    return urllib.request.Request(f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
