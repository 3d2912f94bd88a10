"""Tools of an MCP server, over stdio (package ``mcp``): its schemas as they are, its calls by the client.

One server serves all episodes of an environment, with whatever state it keeps. It starts with the first episode; one
that dies, or does not answer by the deadline, is started anew for the next call. It gets the environment variables that
``mcp`` passes on (HOME, PATH and the like), not all of this process's.
"""

import asyncio
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoalign.common.errors import UserCodeError
from nanoalign.rollouts.environments.tools import error_text

START_S = 60.0
"""Seconds that a server has to start and to list its tools."""


@dataclass(frozen=True)
class McpTool:
    """One tool of a server."""

    server: "McpServer"
    schema: Mapping[str, Any]

    async def call(self, arguments: Mapping[str, Any], deadline_s: float) -> tuple[str, str | None]:
        """The result's text, and what went wrong, if anything (of ``user.FAULTS``)."""
        return await self.server.call(self.schema["name"], arguments, deadline_s)


class McpServer:
    """A server's process, from its command: ``McpServer("python my_server.py")``. ``python`` is this Python."""

    def __init__(self, command: str, folder: str | Path | None = None) -> None:
        """``folder`` is where it runs. Raises ValueError for a command that a shell could not read."""
        self.command, self.folder = command, Path(folder) if folder is not None else None
        words = shlex.split(command)
        if not words:
            raise ValueError("the command of an MCP server is empty")
        self.argv = [sys.executable if words[0] in ("python", "python3") else words[0], *words[1:]]
        self.starts = 0
        """Processes started so far."""
        self._session: _Session | None = None
        self._starting: asyncio.Lock | None = None

    async def tools(self) -> list[McpTool]:
        """Raises UserCodeError where the server does not start."""
        session = await self._started()
        return [McpTool(self, schema) for schema in session.schemas]

    async def call(self, name: str, arguments: Mapping[str, Any], deadline_s: float) -> tuple[str, str | None]:
        """As :meth:`McpTool.call`; never raises."""
        try:
            session = await self._started()
        except UserCodeError as error:
            return error_text(str(error)), "tool server lost"
        asked = asyncio.create_task(session.client.call_tool(name, dict(arguments)))
        ended = session.ended
        await asyncio.wait([asked, ended], timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            raised = asked.exception()
            if raised is None:
                return _text(asked.result())
            if not ended.done() and not _is_lost(raised):
                return error_text(" ".join(str(raised).split())), "tool raised"
        lost = asked.done() or ended.done()
        asked.cancel()
        await self._stop(session)
        if lost:
            return error_text(f"the server of `{name}` ended during the call"), "tool server lost"
        return error_text(f"`{name}` took longer than {deadline_s:g} s"), "tool over its deadline"

    async def _started(self) -> "_Session":
        self._starting = self._starting or asyncio.Lock()
        async with self._starting:
            if self._session is None or self._session.ended.done():
                self.starts += 1
                self._session = await _Session.start(self)
            return self._session

    async def _stop(self, session: "_Session") -> None:
        if self._session is session:
            self._session = None
        await session.stop()

    async def close(self) -> None:
        """Ends the process; a further call starts another one."""
        if self._session is not None:
            await self._stop(self._session)


class _Session:
    """A running server. The client's context is entered and left in one task, as its cancel scopes require."""

    client: Any
    schemas: list[Mapping[str, Any]]
    ended: "asyncio.Task[None]"

    @classmethod
    async def start(cls, server: McpServer) -> "_Session":
        session = cls()
        ready = asyncio.get_running_loop().create_future()
        session._leave = asyncio.Event()
        session.ended = asyncio.create_task(session._serve(server, ready))
        await asyncio.wait([ready, session.ended], timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            return session
        why = f"did not start within {START_S:g} s"
        if session.ended.done():
            error = session.ended.exception()
            why = f"did not start: {_innermost(error)}" if error else "ended at once"
        session.ended.cancel()
        raise UserCodeError(f"MCP server `{server.command}` {why}")

    async def _serve(self, server: McpServer, ready: "asyncio.Future[None]") -> None:
        from mcp import Client, StdioServerParameters

        parameters = StdioServerParameters(command=server.argv[0], args=server.argv[1:], cwd=server.folder)
        async with Client(parameters) as client:
            self.client = client
            self.schemas = [_schema(tool) for tool in (await client.list_tools()).tools]
            ready.set_result(None)
            await self._leave.wait()

    _leave: asyncio.Event

    async def stop(self) -> None:
        self._leave.set()
        await asyncio.wait([self.ended], timeout=10.0)
        if not self.ended.done():
            self.ended.cancel()
        with suppress(BaseException):
            self.ended.exception()


def _schema(tool: Any) -> Mapping[str, Any]:
    described = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {key: value for key, value in described.items() if value}


def _text(result: Any) -> tuple[str, str | None]:
    parts = [getattr(block, "text", None) or f"[{block.type}]" for block in result.content]
    text = "\n".join(parts).encode("utf-8", "replace").decode()
    return (error_text(text), "tool raised") if result.is_error else (text or "ok", None)


def _is_lost(error: BaseException) -> bool:
    """The connection is gone, not the call wrong."""
    import anyio

    gone = (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream, ConnectionError)
    return isinstance(error, gone) or "connection closed" in str(error).lower()


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
