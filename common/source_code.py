"""What a Python file defines, read from its source (``ast``): nothing in it is run."""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nanoalign.common.errors import ConfigError
from nanoalign.common.printable import nearest

DEEPEST = 8
"""Files that an object may be imported through."""
LIBRARIES = ("site-packages", "dist-packages")
"""Folders whose files do not belong together."""


@dataclass(frozen=True)
class Parameter:
    """A parameter that can be given by name."""

    name: str
    required: bool


@dataclass(frozen=True)
class Definition:
    """What the source says about an object; ``parameters`` is None where only running it would tell."""

    kind: str
    """class, function, async function, or value (anything assigned or imported)."""
    file: Path
    """Where it is written; what a file imports from beside it is looked up there."""
    node: ast.AST | None
    """None where a star import may bring it."""
    parameters: tuple[Parameter, ...] | None = None
    open: bool = False
    """It takes any further keyword (``**kwargs``)."""
    methods: frozenset[str] | None = None
    """Of a class: what it defines itself; None where a base class may define more."""

    @property
    def place(self) -> str:
        """As FILE:LINE."""
        return f"{self.file}:{getattr(self.node, 'lineno', 1)}"


def defined(file: Path, name: str, depth: int = 0) -> Definition:
    """What a file says about one of its top-level names.

    Raises:
        ConfigError: it does not parse, or defines no such name.
    """
    tree = parsed(file)
    found = _top_level(tree)
    if name not in found:
        star = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in tree.body)
        if star or "__getattr__" in found:
            return Definition("value", file, None)
        public = [each for each in found if not each.startswith("_")]
        raise ConfigError(f"{file} defines no `{name}`{nearest(name, public)}")
    node = found[name]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return _function(file, node, "async function" if isinstance(node, ast.AsyncFunctionDef) else "function")
    if isinstance(node, ast.ImportFrom) and depth < DEEPEST and (origin := _origin(node, file)):
        return defined(origin, next(each.name for each in node.names if (each.asname or each.name) == name), depth + 1)
    return _class(file, node, found) if isinstance(node, ast.ClassDef) else Definition("value", file, node)


def root_of(file: Path) -> Path:
    """The folder from which a file is imported: its own, or the one above its outermost package."""
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def module_file(root: Path, parts: Iterable[str]) -> Path | None:
    """The file of the module that is called ``parts`` from ``root``."""
    path = root.joinpath(*parts)
    candidates = (path.parent / f"{path.name}.py", path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _origin(node: ast.ImportFrom, file: Path) -> Path | None:
    """The file that an import reads, where it is of the same package or, outside of packages, the same folder."""
    root, parts = root_of(file), (node.module or "").split(".")
    if node.level:
        return module_file(file.parents[node.level - 1], parts) if node.level <= len(file.parents) else None
    alone = root == file.parent and root.name not in LIBRARIES
    return module_file(root, parts) if alone or parts[0] == file.relative_to(root).parts[0] else None


@cache
def _read(file: Path, stamp: tuple[int, int]) -> ast.Module:
    return ast.parse(file.read_bytes(), str(file))


def parsed(file: Path) -> ast.Module:
    """Its syntax tree. Raises ConfigError, with the line, where it does not parse or cannot be read."""
    try:
        status = file.stat()
        return _read(file, (status.st_mtime_ns, status.st_size))
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None) or 1
        raise ConfigError(f"{file}:{line}: not valid Python: {getattr(error, 'msg', error)}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None


def _top_level(tree: ast.Module) -> dict[str, ast.AST]:
    """What a module binds, also within ``if`` and ``try``; the last one counts."""
    found: dict[str, ast.AST] = {}

    def walk(body: Iterable[ast.AST]) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[node.name] = node
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found.update({(alias.asname or alias.name).partition(".")[0]: node for alias in node.names})
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
                found.update({each.id: node for each in names})
            elif isinstance(node, ast.If | ast.Try | ast.With):
                walk(ast.iter_child_nodes(node))
            elif isinstance(node, ast.ExceptHandler):
                walk(node.body)

    walk(tree.body)
    return found


def _function(file: Path, node: ast.FunctionDef | ast.AsyncFunctionDef, kind: str, drop: int = 0) -> Definition:
    decorated = any(_decorator(each) not in ("staticmethod", "classmethod") for each in node.decorator_list)
    if decorated:  # it may take anything
        return Definition(kind, file, node)
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    needed = len(plain) - len(arguments.defaults)
    every = [Parameter(each.arg, place < needed) for place, each in enumerate(plain)][drop:]
    every += [
        Parameter(each.arg, default is None) for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults)
    ]
    return Definition(kind, file, node, tuple(every), arguments.kwarg is not None)


def _class(file: Path, node: ast.ClassDef, found: Mapping[str, ast.AST]) -> Definition:
    """Bases in the same file are read too; a base from elsewhere leaves open what only running would tell."""
    chain, closed = [node], True
    for each in chain:
        for base in each.bases:
            known = found.get(base.id) if isinstance(base, ast.Name) else None
            if isinstance(known, ast.ClassDef) and known not in chain:
                chain.append(known)
            elif not (isinstance(base, ast.Name) and base.id == "object"):
                closed = False
    inside = [item for each in chain for item in each.body]
    methods = {item.name for item in inside if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)}
    methods |= {target.id for item in inside if isinstance(item, ast.Assign) for target in item.targets
                if isinstance(target, ast.Name)}  # fmt: skip
    own = frozenset(methods) if closed else None
    initial = next((item for item in inside if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    if initial is not None:
        made = _function(file, initial, "class", drop=1)
        return Definition("class", file, node, made.parameters, made.open, own)
    if node.decorator_list:  # a dataclass, say
        fields = _fields(node) if not node.bases and _decorator(node.decorator_list[0]) == "dataclass" else None
        return Definition("class", file, node, fields, False, own)
    return Definition("class", file, node, () if closed else None, False, own)


def _fields(node: ast.ClassDef) -> tuple[Parameter, ...]:
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    fields = [item for item in fields if "ClassVar" not in ast.unparse(item.annotation)]
    fields = [item for item in fields if not (item.value and "init=False" in ast.unparse(item.value))]
    return tuple(Parameter(item.target.id, item.value is None) for item in fields if isinstance(item.target, ast.Name))


def _decorator(node: ast.expr) -> str:
    called = node.func if isinstance(node, ast.Call) else node
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
