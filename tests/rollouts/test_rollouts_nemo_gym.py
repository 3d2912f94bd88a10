"""NeMo Gym's resources servers: against a server with its three routes, and against a real one: with Python 3.12,
`python3.12 -m pip install --target DIR nemo-gym==0.4.0`, then `NANOALIGN_NEMO_GYM="python3.12 DIR" pytest`."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.conversation import Answer, Message, ToolCall
from nanoalign.rollouts.config import EnvironmentUse
from nanoalign.rollouts.environments import environment
from nanoalign.rollouts.environments.base import Outcome
from tests.rollouts.served import served

PARAMETERS = {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}
ROW = {
    "responses_create_params": {
        "input": [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Greet ann."}],
        "tools": [
            {"type": "function", "name": "greet", "description": "Greets.", "parameters": PARAMETERS, "strict": False}
        ],
    },
    "whom": "ann",
}
REAL = """
import sys
from typing import Any
import uvicorn
from fastapi import Request
from pydantic import BaseModel, Field
from nemo_gym.base_resources_server import (
    BaseResourcesServerConfig, BaseSeedSessionResponse, BaseVerifyRequest, BaseVerifyResponse, SimpleResourcesServer,
)
from nemo_gym.server_utils import SESSION_ID_KEY, ServerClient

class Greet(BaseModel):
    to: str

class VerifyRequest(BaseVerifyRequest):
    whom: str

class Greetings(SimpleResourcesServer):
    greeted: dict[str, Any] = Field(default_factory=dict)
    def setup_webserver(self):
        app = super().setup_webserver()
        app.post("/greet")(self.greet)
        return app
    async def seed_session(self, request: Request) -> BaseSeedSessionResponse:
        self.greeted[request.session[SESSION_ID_KEY]] = []
        return BaseSeedSessionResponse()
    async def greet(self, body: Greet, request: Request) -> dict:
        self.greeted[request.session[SESSION_ID_KEY]].append(body.to)
        return {"output": f"hello {body.to}"}
    async def verify(self, request: Request, body: VerifyRequest) -> BaseVerifyResponse:
        calls = [item for item in body.response.output if item.type == "function_call"]
        right = self.greeted[request.session[SESSION_ID_KEY]] == [body.whom] and len(calls) == 3
        return BaseVerifyResponse(**body.model_dump(), reward=float(right))

server = Greetings(
    config=BaseResourcesServerConfig(host="127.0.0.1", port=int(sys.argv[1]), entrypoint="", name="greetings"),
    server_client=ServerClient.model_construct(),
)
uvicorn.run(server.setup_webserver(), host="127.0.0.1", port=int(sys.argv[1]))
"""


class Fake(BaseHTTPRequestHandler):
    """The routes of :data:`REAL`."""

    greeted: dict[str, list[str]] = {}  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        session = (self.headers["Cookie"] or "").partition("=")[2]
        cookie, status, answer = "", 200, dict[str, Any]()
        if self.path == "/seed_session":
            cookie = f"s{len(self.greeted)}"
            self.greeted[cookie] = []
        elif self.path == "/greet" and "to" in body:
            self.greeted[session].append(body["to"])
            answer = {"output": f"hello {body['to']}"}
        elif self.path == "/verify":
            calls = [item for item in body["response"]["output"] if item["type"] == "function_call"]
            answer = {"reward": float(self.greeted[session] == [body["whom"]] and len(calls) == 3)}
        else:
            status, answer = 422, {"detail": "field `to` required"}
        self.send_response(status)
        if cookie:
            self.send_header("Set-Cookie", f"session={cookie}; Path=/")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for split, count in (("train", 3), ("test", 1)):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(ROW) + "\n" for _ in range(count)))
    return {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}


def play(url: str, files: dict[str, str]) -> None:
    env = environment(EnvironmentUse(name="nemo-gym", params={"url": url, **files}), None)
    assert [len(env.tasks(split)) for split in ("train", "test")] == [3, 1]
    right, wrong = env.start_all([env.tasks("train")[0], env.tasks("test")[0]])
    assert right.messages == (Message("system", "Be kind."), Message("user", "Greet ann."))
    assert right.tools == ({"name": "greet", "description": "Greets.", "parameters": PARAMETERS},)
    calls = (ToolCall("greet", {"to": "ann"}), ToolCall("greet", {"whom": "bob"}), ToolCall("geet", {}))
    said = [message.content for message in right.step(Answer("", tool_calls=calls))]
    assert json.loads(said[0]) == {"output": "hello ann"} and "required" in said[1]
    assert said[2] == "Error: there is no tool `geet`"
    wrong.step(Answer("", tool_calls=(ToolCall("greet", {"to": "bob"}),)))
    assert right.step(Answer("Done.")) == wrong.step(Answer("Done.")) == () and right.over
    assert [right.outcome(), wrong.outcome()] == [Outcome(True, 1.0), Outcome(False, 0.0)]


def test_a_resources_server_is_an_environment(files: dict[str, str]) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    play(f"http://127.0.0.1:{server.server_port}", files)
    server.shutdown()


def test_a_real_one(files: dict[str, str], tmp_path: Path) -> None:
    if (installed := os.environ.get("NANOALIGN_NEMO_GYM")) is None:
        pytest.skip('python3.12 -m pip install --target DIR nemo-gym==0.4.0, then NANOALIGN_NEMO_GYM="python3.12 DIR"')
    python, folder = installed.split()
    (tmp_path / "greetings.py").write_text(REAL)
    command = [python, str(tmp_path / "greetings.py")]
    with served(command, path=folder, answers_at="/openapi.json") as url:
        play(url, files)


def test_rows_that_are_no_tasks_are_named(files: dict[str, str]) -> None:
    for text, said in (("{}\n", "test.jsonl:1: no task of NeMo Gym"), (None, "no such file")):
        if text is None:
            Path(files["test"]).unlink()
        else:
            Path(files["test"]).write_text(text)
        with pytest.raises(DataError, match=said):
            environment(EnvironmentUse(name="nemo-gym", params={"url": "http://127.0.0.1:9", **files}), None)
