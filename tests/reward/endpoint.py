"""A chat-completions server for tests of what asks one."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint:
    """A chat-completions endpoint that replies as ``reply`` says: a text, a status, seconds of silence, or the
    bytes of the whole body."""

    def __init__(self, reply: Callable[[int, str], str | int | float | bytes]) -> None:
        self.asked: list[dict] = []
        self.trickle = False
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
                said = reply(len(endpoint.asked), body["messages"][0]["content"])
                if endpoint.trickle:
                    self.send_response(200)
                    self.end_headers()
                    for _ in range(100):
                        self.wfile.write(b" ")
                        time.sleep(0.05)
                    return
                if isinstance(said, float):
                    time.sleep(said)
                    return
                self.send_response(said if isinstance(said, int) else 200)
                self.end_headers()
                if isinstance(said, bytes):
                    self.wfile.write(said)
                if isinstance(said, str):
                    self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]}).encode())

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
