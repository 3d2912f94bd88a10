"""A user's own code in a recipe: where its names are, and what is wrong with them, without running any of it."""

import ast
import difflib
import shlex
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nanoalign.common.errors import ConfigError
from nanoalign.common.files import sha256_file
from nanoalign.common.printable import nearest
from nanoalign.common.user_code import code_hash, definition, find, is_user_code, parameter_faults
from nanoalign.data_recipes.generators import reasoning_gym_names
from nanoalign.recipe.source import Path_, YamlTree
from nanoalign.rollouts.config import EnvironmentUse, McpTools
from nanoalign.rollouts.environments import ENVIRONMENTS

Finding = tuple[Path_, str]
METHODS = ("tasks", "reset")
"""What an environment's class must have."""


def anchor(source: YamlTree) -> None:
    """Makes names of a user's files absolute, in place: they are relative to the file that names them (with ``--set``,
    to the working folder), and a stage runs elsewhere."""
    if not isinstance(source.data, dict):
        return
    for part in ("stages", "suites"):
        sections = source.data.get(part)
        for name, section in sections.items() if isinstance(sections, dict) else ():
            if isinstance(section, dict) and "environment" in section:
                section["environment"] = _anchored(section["environment"], (part, name, "environment"), source)


def _anchored(use: Any, path: Path_, source: YamlTree) -> Any:
    place = source.place(path)
    folder = Path(place.file).resolve().parent if place.line else Path.cwd()
    if isinstance(use, str):
        return _absolute(use, folder)
    if not isinstance(use, dict):
        return use
    use = dict(use)
    if isinstance(use.get("name"), str):
        use["name"] = _absolute(use["name"], folder)
    if isinstance(use.get("tools"), list):
        use["tools"] = [
            {"folder": str(folder), **tool} if isinstance(tool, dict)
            else _absolute(tool, folder) if isinstance(tool, str) else tool
            for tool in use["tools"]
        ]  # fmt: skip
    return use


def _absolute(spelling: str, folder: Path) -> str:
    if not is_user_code(spelling):
        return spelling
    file, colon, name = spelling.rpartition(":") if ":" in spelling else (spelling, "", "")
    if file.endswith(".py"):
        return f"{folder / Path(file).expanduser()}{colon}{name}"
    try:
        code = find(spelling, folder)
    except ConfigError:
        return spelling  # the checks say what is wrong
    return str(code) if folder in code.file.parents else spelling


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
        what = definition(code)
    except ConfigError as error:
        yield ("name",), str(error)
    else:
        where = f"`{code.name}` ({code.file}:{what.line})"
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
        kind = definition(find(tool)).kind
    except ConfigError as error:
        yield str(error)
        return
    if kind == "class":
        yield f"`{tool.rpartition(':')[2]}` is a class; a tool is a function"
    if kind.endswith("function"):
        yield from _annotations(tool)


def _annotations(tool: str) -> Iterator[str]:
    code = find(tool)
    for node in ast.parse(code.file.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.name:
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                if argument.annotation is None and not node.decorator_list:
                    where = f"{code.file}:{argument.lineno}"
                    yield f"{where}: tool `{code.name}`: parameter `{argument.arg}` has no type"


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


def code_hashes(section: Any) -> dict[str, str]:
    """The user's code behind a stage or a suite, by its short name, and the hash of its source."""
    use = getattr(section, "environment", None)
    if not isinstance(use, EnvironmentUse):
        return {}
    names = [use.name, *(tool for tool in use.tools if isinstance(tool, str))]
    codes = [find(name) for name in names if is_user_code(name)]
    servers = [tool for tool in use.tools if isinstance(tool, McpTools)]
    return {code.short: code_hash(code) for code in codes} | {
        path.name: sha256_file(path)[:16] for tool in servers for path in _files(tool)
    }


def _files(tool: McpTools) -> list[Path]:
    paths = [Path(tool.folder or ".") / word for word in shlex.split(tool.mcp)[1:]]
    return [path for path in paths if path.is_file()]
