"""Where a user's function is, found and checked without importing or running it."""

import ast
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.files import content_hash, sha256_file
from nanoalign.common.printable import nearest
from nanoalign.reward.config import is_own, section_of, short_names
from nanoalign.reward.own.signature import Signature, of_node

DEEPEST = 8
"""Files that a function may be imported through."""


@dataclass(frozen=True)
class Function:
    """A function that a recipe names."""

    file: Path
    line: int
    signature: Signature | None
    """None where only the function itself shows it: it is assigned, or decorated."""


def is_file(where: str) -> bool:
    """Whether the part of a key before its colon is a path, not a module."""
    return where.endswith(".py") or "/" in where


def split(key: str) -> tuple[str, str]:
    """FILE or module, and function, of a key. Raises ConfigError where one is missing."""
    where, _, name = key.rpartition(":")
    if not where or not name.isidentifier():
        raise ConfigError("expected FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION")
    return where, name


def find_file(where: str) -> Path:
    """The source file of a path or module; no module is imported. Raises ConfigError where there is none."""
    if is_file(where):
        path = Path(where).expanduser()
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, not a Python file")
        if not path.is_file():
            raise ConfigError(f"no such file: {path}{_near_files(path)}")
        return path
    parts = where.split(".")
    found, folders = None, None
    for number in range(1, len(parts) + 1):
        name = ".".join(parts[:number])
        found = _find_module(name, folders)
        if found is None:
            inside = f"`{'.'.join(parts[: number - 1])}` has no module `{parts[number - 1]}`"
            missing = inside if number > 1 else f"package `{name}` is not installed"
            raise ConfigError(f"{missing} (a file beside the recipe is written {'/'.join(parts)}.py:FUNCTION)")
        folders = found.submodule_search_locations
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise ConfigError(f"module `{where}` has no Python source")
    return Path(found.origin)


def _find_module(name: str, folders: Any) -> importlib.machinery.ModuleSpec | None:
    """The spec of a module whose package lies in ``folders``; importlib.util.find_spec would import that package."""
    try:
        if "." not in name:
            return importlib.util.find_spec(name)
        return None if folders is None else importlib.machinery.PathFinder.find_spec(name, list(folders))
    except (ImportError, ValueError):
        return None


def _near_files(path: Path) -> str:
    folder = path.parent
    return nearest(path.name, [each.name for each in folder.glob("*.py")]) if folder.is_dir() else ""


def find(key: str) -> Function:
    """The function that a key names. Raises ConfigError, with file and line where there is one, for whatever keeps it
    from being a reward: see :func:`check`."""
    where, name = split(key)
    file = find_file(where)
    return _in_file(file, name, 0)


def _in_file(file: Path, name: str, depth: int) -> Function:
    tree = parse(file)
    bound = _bindings(tree)
    if name not in bound:
        functions = [each for each, node in bound.items() if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        raise ConfigError(f"{file} has no function `{name}`{nearest(name, functions)}")
    node = bound[name]
    line = node.lineno
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return Function(file, line, None if node.decorator_list else of_node(node))
    if isinstance(node, ast.ClassDef):
        raise ConfigError(f"{file}:{line}: `{name}` is a class; name a function, or `{name.lower()} = {name}(...)`")
    if isinstance(node, ast.ImportFrom):
        original = next(each.name for each in node.names if (each.asname or each.name) == name)
        origin = next(iter(_targets(node, file)), None)
        if origin is not None and depth < DEEPEST:
            return _in_file(origin, original, depth + 1)
    if isinstance(node, ast.Import) or (isinstance(node, ast.Assign | ast.AnnAssign) and _plain_value(node.value)):
        raise ConfigError(f"{file}:{line}: `{name}` is not a function")
    return Function(file, line, None)


@lru_cache(maxsize=256)
def _parsed(file: Path, size: int, changed: int) -> ast.Module:
    return ast.parse(file.read_bytes(), str(file))


def parse(file: Path) -> ast.Module:
    """A file's syntax tree. Raises ConfigError, with the line, where it has none."""
    try:
        status = file.stat()
        return _parsed(file, status.st_size, status.st_mtime_ns)
    except SyntaxError as error:
        raise ConfigError(f"{file}:{error.lineno or 1}: not valid Python: {error.msg}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read as Python: {error}") from None


def _bindings(tree: ast.Module) -> dict[str, Any]:
    """Names that a module binds, to the statement that does last; in ``if`` and ``try`` too."""
    found: dict[str, Any] = {}
    for node in _statements(tree.body):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found[node.name] = node
            case ast.Assign(targets=targets):
                found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                found[name] = node
            case ast.Import() | ast.ImportFrom():
                found |= {each.asname or each.name.partition(".")[0]: node for each in node.names}
    return found


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run on import."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from _statements(getattr(node, inner, []))
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body)


def _plain_value(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant | ast.List | ast.Dict | ast.Tuple | ast.Set | ast.JoinedStr)


def _root(file: Path) -> Path:
    """The folder from which a file's absolute imports of its neighbours start: above its outermost package."""
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _is_near(file: Path, other: Path) -> bool:
    """Whether two files belong together: to one package or, outside of packages, to one folder of a user's."""
    root = _root(file)
    if root == file.parent and root.name not in ("site-packages", "dist-packages"):
        return other.is_relative_to(root)
    return other.relative_to(root).parts[0] == file.relative_to(root).parts[0] if other.is_relative_to(root) else False


def _targets(node: ast.Import | ast.ImportFrom, file: Path) -> Iterator[Path]:
    """The files beside ``file``, or in its package, that an import names."""
    if isinstance(node, ast.Import):
        names, start = [each.name for each in node.names], _root(file)
    elif node.level:
        start = file.parents[node.level - 1]
        names = [node.module] if node.module else []
        names += [f"{node.module}.{each.name}" if node.module else each.name for each in node.names]
    else:
        start = _root(file)
        names = [str(node.module), *(f"{node.module}.{each.name}" for each in node.names)]
    for name in names:
        base = start.joinpath(*name.split("."))
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file() and _is_near(file, candidate):
                yield candidate


def files(file: Path) -> list[Path]:
    """The file, and all that it imports from beside it or from its own package, however deep."""
    found: dict[Path, None] = {}
    waiting = [file]
    while waiting:
        each = waiting.pop()
        if each in found:
            continue
        found[each] = None
        try:
            nodes = list(ast.walk(parse(each)))
        except ConfigError:  # importing it says so
            continue
        waiting += [path for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)
                    for path in _targets(node, each)]  # fmt: skip
    return sorted(found)


def source_hash(key: str) -> str:
    """Names the source of a key's function: its file's, and that of what the file imports from around it."""
    file = find_file(split(key)[0])
    root = _root(file)
    return content_hash(sorted((str(each.relative_to(root)), sha256_file(each)) for each in files(file)))


def failing_import(file: Path, alone: bool) -> str | None:
    """What is wrong with the first import of a file, outside of any ``try``, that must fail: with its line. A file that
    is named by its path is loaded ``alone``, not as part of a package."""
    for node in parse(file).body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
        elif isinstance(node, ast.ImportFrom) and alone:
            return f"{file}:{node.lineno}: a relative import needs its package: name it PACKAGE.MODULE:FUNCTION"
        for name in [] if not names or next(_targets(node, file), None) else names:  # type: ignore[arg-type]
            top = name.partition(".")[0]
            if top not in sys.modules and _find_module(top, None) is None:
                return f"{file}:{node.lineno}: imports `{top}`, which is not installed"
    return None


def check(key: str, value: Any) -> tuple[str, str] | None:
    """What keeps a recipe's entry from working, as far as it shows without running it: (the parameter at fault or "",
    a message). None: nothing."""
    try:
        function = find(key)
        if (failing := failing_import(function.file, is_file(split(key)[0]))) is not None:
            return "", failing
    except ConfigError as error:
        return "", str(error)
    if function.signature is None:
        return None
    fault = function.signature.fault(section_of(value).parameters)
    if fault is None or fault[0]:
        return fault
    return "", f"{function.file}:{function.line}: {fault[1]}"


def identity(section: dict[str, Any]) -> dict[str, Any]:
    """A section of a recipe (``Section.identity()``) with its own rewards by their short names and the hash of their
    source, wherever they lie."""
    reward = section.get("reward")
    if not isinstance(reward, dict) or not any(map(is_own, reward)):
        return section
    names = short_names(reward)
    return section | {"reward": {
        names[key]: section_of(value).identity() | {"source": source_hash(key)} if is_own(key) else value
        for key, value in reward.items()
    }}  # fmt: skip
