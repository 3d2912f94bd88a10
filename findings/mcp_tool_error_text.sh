#!/usr/bin/env bash
# mcp 2.3.0: the text of a tool's exception no longer reaches the client.
#
# One expects a tool that raises ValueError("no such city: Osol; did you mean Oslo?") to answer with that text, as under
# mcp 1.30.0: it is how a model learns what was wrong with its call.
# What happens: since 2.x only a ToolError's text is passed on; any other exception becomes the tool's name alone, and
# its text goes to the server's log.
# Seen: mcp 2.3.0, ValueError: "Error executing tool weather"; ToolError: "Error executing tool forecast: no such city:
# Osol; did you mean Oslo?". mcp 1.30.0: the ValueError's text reaches the client.
# Why it hurts: tools written for training environments raise ordinary exceptions. After the upgrade each of them still
# gives is_error, so nothing fails, but the policy sees the same sentence for every mistake and cannot correct itself;
# trajectories from before and after are not comparable.
set -euo pipefail
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
for version in 1.30.0 2.3.0; do
  python3 -m venv "$t/$version"
  "$t/$version/bin/pip" install -q mcp==$version
done
"$t/2.3.0/bin/python" - 2> /dev/null <<'PY'
import asyncio

from mcp import Client
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("tools")
TEXT = "no such city: Osol; did you mean Oslo?"


@server.tool()
def weather(city: str) -> str:
    raise ValueError(TEXT)


@server.tool()
def forecast(city: str) -> str:
    raise ToolError(TEXT)


async def main():
    async with Client(server) as client:
        for name, seen in (("weather", ""), ("forecast", f": {TEXT}")):
            result = await client.call_tool(name, {"city": "Osol"})
            print("2.3.0", name, result.is_error, repr(result.content[0].text))
            assert result.is_error and result.content[0].text == f"Error executing tool {name}{seen}"


asyncio.run(main())
PY
"$t/1.30.0/bin/python" - 2> /dev/null <<'PY'
import asyncio

from mcp.server.fastmcp import FastMCP
from mcp.shared.memory import create_connected_server_and_client_session

server = FastMCP("tools")


@server.tool()
def weather(city: str) -> str:
    raise ValueError("no such city: Osol; did you mean Oslo?")


async def main():
    async with create_connected_server_and_client_session(server) as client:
        result = await client.call_tool("weather", {"city": "Osol"})
        print("1.30.0 weather", result.isError, repr(result.content[0].text))
        assert result.isError and "no such city: Osol; did you mean Oslo?" in result.content[0].text


asyncio.run(main())
PY
