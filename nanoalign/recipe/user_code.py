"""A user's own code in a recipe: what is wrong with environments, without running any of it, and its hashes."""

import ast
import difflib
import shlex
import shutil
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nanoalign.common.errors import ConfigError
from nanoalign.common.files import sha256_file
from nanoalign.common.printable import nearest
from nanoalign.common.user_code import code_hash, definition, failing_import, find, is_user_code, parameter_faults
from nanoalign.data_recipes.generators import reasoning_gym_names
from nanoalign.recipe.source import Path_
from nanoalign.rollouts.config import EnvironmentUse, McpTools
from nanoalign.rollouts.environments import ENVIRONMENTS

Finding = tuple[Path_, str]
METHODS = ("tasks", "reset")
"""What an environment's class must have."""


def environment_faults(use: Any) -> Iterator[Finding]:
    """What is wrong with an environment, with its path in the stage or suite. In a section that is wrong by itself,
    ``use`` may be anything."""
    try:
        use = EnvironmentUse(name=use) if isinstance(use, str) else EnvironmentUse.model_validate(use)
    except ValidationError:
        return
    for path, message in _faults(use):
        alone = path == ("name",) and use == EnvironmentUse(name=use.name)  # `environment: NAME`
        yield ("environment", *(() if alone else path)), message


def _faults(use: EnvironmentUse) -> Iterator[Finding]:
    if not is_user_code(use.name):
        yield from _named(use)
        return
    try:
        code = find(use.name)
        what, failing = definition(code), failing_import(code)
    except ConfigError as error:
        yield ("name",), str(error)
    else:
        where = f"`{code.name}` ({what.place})"
        if failing is not None:
            yield ("name",), failing
        if what.kind == "async function":
            yield ("name",), f"{where} is async; an environment is made by a class or a plain function"
        if what.kind == "class" and what.methods is not None and not {"start", "tasks"} <= what.methods:
            for method in METHODS:
                if method not in what.methods:
                    near = difflib.get_close_matches(method, what.methods, n=1)
                    yield ("name",), f"{where} has no method `{method}`{f'; is `{near[0]}` it?' if near else ''}"
        for name, message in parameter_faults(code, use.params):
            yield ("params", *([name] if name in use.params else [])), message
    for index, tool in enumerate(use.tools):
        yield from ((("tools", index), message) for message in _tool(tool))


def _named(use: EnvironmentUse) -> Iterator[Finding]:
    if use.name not in ENVIRONMENTS:
        yield (
            ("name",),
            f"unknown environment `{use.name}`{nearest(use.name, ENVIRONMENTS)}; your own is FILE.py:NAME",
        )
        return
    entry = ENVIRONMENTS[use.name]
    if use.params and not entry.params:
        yield ("params",), f"`{use.name}` takes no parameters"
    for name, message in parameter_faults(find(entry.code), use.params) if entry.params else ():
        yield ("params", *([name] if name in use.params else [])), message
    dataset = use.params.get("dataset")
    if use.name == "reasoning-gym" and dataset is not None and dataset not in reasoning_gym_names():
        yield ("params", "dataset"), f"unknown data set `{dataset}`{nearest(str(dataset), reasoning_gym_names())}"
    if use.tools:
        yield ("tools",), f"`{use.name}` has its own tools; yours go with an environment of your own"


def _tool(tool: str | McpTools) -> Iterator[str]:
    if isinstance(tool, McpTools):
        yield from _server(tool)
        return
    try:
        what = definition(find(tool))
    except ConfigError as error:
        yield str(error)
        return
    name, node = tool.rpartition(":")[2], what.node
    if what.kind == "class":
        yield f"`{name}` is a class; a tool is a function"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list:
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            if argument.annotation is None:
                yield f"{what.file}:{argument.lineno}: tool `{name}`: parameter `{argument.arg}` has no type"


def _server(tool: McpTools) -> Iterator[str]:
    if find_spec("mcp") is None:
        yield "mcp: its client is not installed: pip install 'mcp>=2'"
    try:
        words = shlex.split(tool.mcp)
    except ValueError as error:
        yield f"mcp: `{tool.mcp}` cannot be read as a command: {error}"
        return
    if not words:
        yield "mcp: the command is empty"
        return
    folder = Path(tool.folder or ".")
    if words[0] not in ("python", "python3") and not shutil.which(words[0]) and not (folder / words[0]).is_file():
        yield f"mcp: no command `{words[0]}` on the PATH"
    for word in words[1:]:
        path = folder / word
        if word.endswith(".py") and not path.is_file():
            near = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
            yield f"mcp: no such file: {path}{nearest(path.name, near)}"
        elif word.endswith(".py"):
            try:
                ast.parse(path.read_bytes())
            except SyntaxError as error:
                yield f"mcp: {path}:{error.lineno}: not valid Python: {error.msg}"


def code_hashes(sections: Iterable[Any]) -> dict[str, str]:
    """The user's code (rewards, environments, tools) behind these stages and suites: short names, and the hashes of
    their sources."""
    found: dict[str, set[str]] = {}
    for section in sections:
        use = getattr(section, "environment", None)
        uses = [use.name, *use.tools] if isinstance(use, EnvironmentUse) else []
        for each in (*(getattr(section, "reward", None) or ()), *uses):
            if isinstance(each, McpTools):
                for path in _files(each):
                    found.setdefault(path.name, set()).add(sha256_file(path)[:16])
            elif is_user_code(each):
                code = find(each)
                found.setdefault(code.short, set()).add(code_hash(code))
    return {short: "+".join(sorted(hashes)) for short, hashes in found.items()}


def _files(tool: McpTools) -> list[Path]:
    paths = [Path(tool.folder or ".") / word for word in shlex.split(tool.mcp)[1:]]
    return [path for path in paths if path.is_file()]
