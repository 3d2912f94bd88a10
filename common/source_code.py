"""What a Python file defines, read from its source (``ast``): nothing in it is run."""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nanoalign.common.errors import ConfigError
from nanoalign.common.printable import nearest


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
    line: int
    parameters: tuple[Parameter, ...] | None = None
    open: bool = False
    """It takes any further keyword (``**kwargs``)."""
    methods: frozenset[str] | None = None
    """Of a class: what it defines itself; None where a base class may define more."""


def defined(file: Path, name: str) -> Definition:
    """What a file says about one of its top-level names.

    Raises:
        ConfigError: it does not parse, or defines no such name.
    """
    tree = parsed(file)
    found = _top_level(tree)
    if name not in found:
        if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in tree.body):
            return Definition("value", 1)
        public = [each for each in found if not each.startswith("_")]
        raise ConfigError(f"{file} defines no `{name}`{nearest(name, public)}")
    node = found[name]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return _function(node, "async function" if isinstance(node, ast.AsyncFunctionDef) else "function")
    return _class(node, found) if isinstance(node, ast.ClassDef) else Definition("value", getattr(node, "lineno", 1))


@cache
def _read(file: Path, stamp: tuple[int, int]) -> ast.Module:
    return ast.parse(file.read_bytes(), str(file))


def parsed(file: Path) -> ast.Module:
    """Its syntax tree. Raises ConfigError, with the line, where it does not parse or cannot be read."""
    try:
        status = file.stat()
        return _read(file, (status.st_mtime_ns, status.st_size))
    except (SyntaxError, ValueError) as error:
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


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, kind: str, drop: int = 0) -> Definition:
    decorated = any(_decorator(each) not in ("staticmethod", "classmethod") for each in node.decorator_list)
    if decorated:  # it may take anything
        return Definition(kind, node.lineno)
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    needed = len(plain) - len(arguments.defaults)
    every = [Parameter(each.arg, place < needed) for place, each in enumerate(plain)][drop:]
    every += [
        Parameter(each.arg, default is None) for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults)
    ]
    return Definition(kind, node.lineno, tuple(every), arguments.kwarg is not None)


def _class(node: ast.ClassDef, found: Mapping[str, ast.AST]) -> Definition:
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
        made = _function(initial, "class", drop=1)
        return Definition("class", node.lineno, made.parameters, made.open, own)
    if node.decorator_list:  # a dataclass, say
        fields = _fields(node) if not node.bases and _decorator(node.decorator_list[0]) == "dataclass" else None
        return Definition("class", node.lineno, fields, False, own)
    return Definition("class", node.lineno, () if closed else None, False, own)


def _fields(node: ast.ClassDef) -> tuple[Parameter, ...]:
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    fields = [item for item in fields if "ClassVar" not in ast.unparse(item.annotation)]
    fields = [item for item in fields if not (item.value and "init=False" in ast.unparse(item.value))]
    return tuple(Parameter(item.target.id, item.value is None) for item in fields if isinstance(item.target, ast.Name))


def _decorator(node: ast.expr) -> str:
    called = node.func if isinstance(node, ast.Call) else node
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
