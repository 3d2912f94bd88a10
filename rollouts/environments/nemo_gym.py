"""NeMo Gym's environments, behind their resources servers: NVIDIA's package is not needed here, and could not be (it
asks for Python 3.12 and later, since 0.5 for 3.13).

A resources server has three routes: `/seed_session` begins an episode (a cookie names it), `/TOOL` runs a tool, and
`/verify` judges the response of the Responses API that the episode has become. Tasks are the rows of their JSONL files,
whose `responses_create_params` hold the first messages and the tools.
"""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError, DataError
from nanoalign.data_recipes.conversation import Answer, Message


class NemoGym:
    """A resources server in the short form of ``base.py``."""

    def __init__(self, url: str, train: str, test: str, deadline_s: float) -> None:
        """``train`` and ``test``: files of tasks. Raises DataError for rows that are none."""
        self.name, self.url, self.deadline_s = "nemo-gym", url, deadline_s
        self._rows = {"train": _rows(Path(train)), "test": _rows(Path(test))}

    def tasks(self, split: str) -> Iterable[Mapping[str, Any]]:
        for number, row in enumerate(self._rows[split]):
            yield {"id": f"{split}-{number}", "row": row}

    async def reset(self, task: Mapping[str, Any]) -> "NemoGymEpisode":
        """A session of its own, seeded with the row."""
        episode = NemoGymEpisode(self.url, task["row"], self.deadline_s)
        await episode.ask("seed_session", task["row"])
        return episode


class NemoGymEpisode:
    """A session, and what has been said in it as items of the Responses API."""

    def __init__(self, url: str, row: Mapping[str, Any], deadline_s: float) -> None:
        self._url, self._row, self._deadline_s = url, row, deadline_s
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self._items: list[dict[str, Any]] = []
        asked = row["responses_create_params"]
        given = asked["input"]
        self.messages = [Message("user", given)] if isinstance(given, str) else [_message(each) for each in given]
        self.tools = [
            {"name": tool["name"], "description": tool.get("description") or "", "parameters": tool["parameters"]}
            for tool in asked.get("tools") or ()
        ]

    async def step(self, answer: Answer) -> tuple[list[Message], bool]:
        """The results of an answer's calls; without a call the episode is over."""
        if answer.content or not answer.tool_calls:
            text = {"type": "output_text", "text": answer.content, "annotations": []}
            self._items.append(
                {"type": "message", "id": self._id(), "role": "assistant", "status": "completed", "content": [text]}
            )
        results = []
        for call in answer.tool_calls:
            name, arguments = self._id(), json.dumps(call.arguments)
            self._items.append({"type": "function_call", "call_id": name, "name": call.name, "arguments": arguments})
            if any(tool["name"] == call.name for tool in self.tools):
                output = await self.ask(call.name, call.arguments, refused=True)
            else:
                output = f"Error: there is no tool `{call.name[:64]}`"
            self._items.append({"type": "function_call_output", "call_id": name, "output": output})
            results.append(Message("tool", output))
        return results, not results

    async def reward(self) -> float:
        """The verifier's number, between 0 and 1: what is outside counts as the nearer bound."""
        response = {
            "id": "nanoalign", "object": "response", "created_at": 0, "model": "nanoalign", "output": self._items,
            "parallel_tool_calls": True, "tool_choice": "auto",
            "tools": self._row["responses_create_params"].get("tools") or [],
        }  # fmt: skip
        found = json.loads(await self.ask("verify", {**self._row, "response": response}))
        return min(1.0, max(0.0, float(found["reward"])))

    async def ask(self, route: str, body: Mapping[str, Any], refused: bool = False) -> str:
        """The answer's text. ``refused``: arguments that the server refuses are an error text for the model; else
        raises RuntimeError."""
        return await asyncio.to_thread(self._ask, route, body, refused)

    def _ask(self, route: str, body: Mapping[str, Any], refused: bool) -> str:
        request = urllib.request.Request(
            f"{self._url}/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with self._opener.open(request, timeout=self._deadline_s) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            if refused and error.code in (400, 404, 422):
                return f"Error: {said}"
            raise RuntimeError(f"{self._url}/{route} answers {error.code}: {said}") from error
        except OSError as error:
            raise ConfigError(f"nemo-gym: no answer from {self._url}/{route}: {error}") from error

    def _id(self) -> str:
        return f"item_{len(self._items)}"


def _rows(file: Path) -> list[Mapping[str, Any]]:
    if not file.is_file():
        raise DataError(f"nemo-gym: no such file {file} in {Path.cwd()}")
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line) if line.strip() else None
        if row is None:
            continue
        if not isinstance(row, dict) or not row.get("responses_create_params", {}).get("input"):
            raise DataError(f"{file}:{number}: no task of NeMo Gym: it has no `responses_create_params` with `input`")
        rows.append(row)
    return rows


def _message(item: Mapping[str, Any]) -> Message:
    """Raises ValueError for anything but messages of text."""
    content = item.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content)
    if item.get("role") not in ("system", "developer", "user", "assistant") or not isinstance(content, str):
        raise ValueError(f"{dict(item)!r:.100} is no message of text")
    return Message("system" if item["role"] == "developer" else item["role"], content)
