"""A scripted server with the routes of vLLM's that the pool uses, in threads of this process.

A token is the hash of all before it and of the weights, so that tests can tell under which weights each was drawn.
"""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from safetensors.torch import load_file

from nanoalign.budget_control.token_route import ROUTE


def token(before: list[int], weights: int) -> int:
    """The weights in front, then a number of what came before."""
    return 1000 * weights + (sum(before) * 31 + len(before)) % 997


class FakeServer:
    """Draws a token every ``token_s`` seconds for all requests; ``hangs`` says at which routes it gives no answer, and
    ``fails`` with which status it answers."""

    def __init__(self, token_s: float = 0.002) -> None:
        self.token_s = token_s
        self.weights, self.bodies, self.routes = 0, [], []
        self.most = self.now = 0
        self.hangs: set[str] = set()
        self.fails: dict[str, int] = {}
        self.on_load: Callable[[], None] = lambda: None
        self.running = threading.Event()
        self.running.set()
        self.cut, self.dead = 0, False
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                self.do_POST()

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
                route = urlsplit(self.path).path
                fake.routes.append(route)
                while route in fake.hangs and not fake.dead:
                    time.sleep(0.01)
                try:
                    status = fake.fails.get(route, 200)
                    if route == ROUTE and status == 200:
                        self.send_response(200)
                        self.end_headers()
                        with ThreadPoolExecutor(len(body)) as threads:
                            for each in as_completed([threads.submit(fake.line, *each) for each in enumerate(body)]):
                                if not fake.dead:
                                    self.wfile.write(each.result())
                                    self.wfile.flush()
                        return
                    answer = json.dumps(fake.answer(route, body) if status == 200 else "scripted").encode()
                    if fake.dead:
                        return
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except OSError:
                    pass  # nobody waits for it any more

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, route: str, body):
        if route == "/v1/models":
            return {"data": [{"id": "fake", "max_model_len": 4096}]}
        if route == "/pause":
            with self.lock:
                self.running.clear()
                self.cut += 1
        elif route == "/resume":
            self.running.set()
        elif route == "/collective_rpc" and body["method"] == "reload_weights":
            self.on_load()
            folder = Path(body["kwargs"]["weights_path"])
            files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
            self.weights = int(next(file["w"] for file in files if "w" in file)) if files else 0
        return {}

    def line(self, place: int, body) -> bytes:
        return json.dumps({"place": place, **self.completion(body)}).encode() + b"\n"

    def completion(self, body):
        with self.lock:
            self.bodies.append(body)
            cut, weights = self.cut, self.weights
            self.now += 1
            self.most = max(self.most, self.now)
        ids: list[int] = []
        reason = "length"
        while len(ids) < body["max_tokens"]:
            while not self.running.is_set() and self.cut == cut:
                time.sleep(0.001)
            if self.cut != cut:
                reason = "abort"
                break
            time.sleep(self.token_s)
            weights = self.weights
            ids.append(token([*body["prompt"], *ids], weights))
        with self.lock:
            self.now -= 1
        answer = {"finish_reason": reason, "token_ids": ids}
        if "prompt_logprobs" in body:
            return answer | {"prompt_logprobs": [-float(each) for each in body["prompt"][1:]]}
        return answer | {"logprobs": [-float(weights)] * len(ids), "likeliest": ids}

    def die(self) -> None:
        """Its connections break off, and nobody listens any more."""
        self.dead = True
        self.http.shutdown()
        self.http.server_close()
        self.cut += 1
