"""A user's own Python objects, named ``my_code.py:Name`` (a file beside the recipe) or ``package.module:Name``.

They are found and checked by reading their source (``ast``): a plan runs no user code. :func:`load` imports.
"""

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.printable import nearest

_SPELLING = re.compile(r"(?P<place>[^:]+(?:\.py)?):(?P<name>[A-Za-z_]\w*)")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class UserCode:
    """Where a user's object is."""

    file: Path
    """Its source, absolute."""
    module: str
    """The dotted name under which it is imported; a name of our own for a file outside any package."""
    root: Path
    """The folder from which ``module`` is imported."""
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"

    @property
    def short(self) -> str:
        """Without its folder: the same wherever a run is moved to."""
        return f"{self.file.name}:{self.name}"


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


def is_user_code(spelling: str) -> bool:
    """Whether a name is meant as a user's code: it has a colon, or ends with ``.py``."""
    return ":" in spelling or spelling.endswith(".py")


def find(spelling: str, folder: Path | None = None) -> UserCode:
    """Where an object is: files and packages beside the recipe (``folder``, else the working folder) first, then
    installed packages. Imports nothing of the user's.

    Raises:
        ConfigError: not spelled FILE.py:NAME or package.module:NAME, no such file or module, or no such name in it.
    """
    match = _SPELLING.fullmatch(spelling)
    if match is None:
        raise ConfigError(f"expected FILE.py:NAME or package.module:NAME, got `{spelling}`")
    place, name = match["place"], match["name"]
    base = (folder or Path.cwd()).resolve()
    code = _in_file(base / Path(place).expanduser(), name) if place.endswith(".py") else _in_module(place, name, base)
    definition(code)
    return code


def definition(code: UserCode) -> Definition:
    """What the source says about the object.

    Raises:
        ConfigError: the source does not parse, or defines no such name.
    """
    tree = _parsed(code.file)
    found = _top_level(tree)
    if code.name not in found:
        if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in tree.body):
            return Definition("value", 1)
        public = [name for name in found if not name.startswith("_")]
        raise ConfigError(f"{code.file} defines no `{code.name}`{nearest(code.name, public)}")
    node = found[code.name]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return _function(node, "async function" if isinstance(node, ast.AsyncFunctionDef) else "function")
    return _class(node, found) if isinstance(node, ast.ClassDef) else Definition("value", getattr(node, "lineno", 1))


def parameter_faults(code: UserCode, given: Iterable[str], supplied: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """What is wrong with calling the object with these keywords: (parameter, message). ``supplied`` are those that we
    give it ourselves where it takes them."""
    what = definition(code)
    if what.parameters is None:
        return
    names = {parameter.name for parameter in what.parameters}
    given, supplied = list(given), set(supplied)
    if not what.open:
        for name in given:
            if name not in names:
                yield name, f"`{code.name}` ({code.file}:{what.line}) takes no such parameter{nearest(name, names)}"
    for parameter in what.parameters:
        if parameter.required and parameter.name not in {*given, *supplied}:
            yield parameter.name, f"`{code.name}` ({code.file}:{what.line}) needs the parameter `{parameter.name}`"


def load(code: UserCode) -> Any:
    """The object; imports its module, once in a process. Its folder comes last on ``sys.path``: a ``datasets.py``
    beside the recipe hides no library.

    Raises:
        ConfigError: the module cannot be imported (with the user's line), or has no such name.
    """
    if str(code.root) not in sys.path:
        sys.path.append(str(code.root))
    try:
        module = sys.modules.get(code.module) or _import(code)
    except (Exception, SystemExit) as error:
        sys.modules.pop(code.module, None)
        raise ConfigError(f"{blame(error, code.file)}: cannot be imported: {reason(error)}") from error
    try:
        return getattr(module, code.name)
    except AttributeError:
        raise ConfigError(f"{code.file} defines no `{code.name}`{nearest(code.name, vars(module))}") from None


def code_hash(code: UserCode) -> str:
    """16 hex digits that name the source behind an object: its file and what that imports from beside it, or the whole
    package that it is in. Installed libraries that it uses are not part of it."""
    if "." in code.module or (code.file.parent / "__init__.py").is_file():
        package = code.root / code.module.partition(".")[0]
        files = sorted(package.rglob("*.py")) if package.is_dir() else [code.file]
    else:
        files = sorted(_with_imports(code.file))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(code.root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def blame(error: BaseException, file: Path) -> str:
    """``file:line`` of the innermost frame of a traceback that is in ``file`` or a file beside or below it; of a syntax
    error, its own place."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _beside(frame.filename, file.parent)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else str(file)


def reason(error: BaseException) -> str:
    """An error as one line: ``KeyError: 'id'``."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def portable(value: Any) -> Any:
    """JSON data in which ``/folder/my_code.py:Name`` is ``my_code.py:Name``: a run that is moved stays the same run."""
    if isinstance(value, str):
        match = _SPELLING.fullmatch(value)
        return f"{Path(match['place']).name}:{match['name']}" if match and match["place"].endswith(".py") else value
    if isinstance(value, Mapping):
        return {portable(key): portable(item) for key, item in value.items()}
    return [portable(item) for item in value] if isinstance(value, list | tuple) else value


def _in_file(path: Path, name: str) -> UserCode:
    if not path.is_file():
        near = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"no such file: {path}{nearest(path.name, near)}")
    path = path.resolve()
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():  # part of a package: its relative imports are to work
        root, parts = root.parent, [root.name, *parts]
    if len(parts) > 1:
        return UserCode(path, ".".join(part for part in parts if part != "__init__"), root, name)
    unique = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return UserCode(path, f"{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{unique}", root, name)


def _in_module(dotted: str, name: str, base: Path) -> UserCode:
    if not _MODULE.fullmatch(dotted):
        raise ConfigError(f"expected FILE.py:NAME or package.module:NAME, got `{dotted}:{name}`")
    top, *inner = dotted.split(".")
    for root in [base, *_installed(top)]:
        here = root / top
        if (here.is_dir() or here.with_suffix(".py").is_file()) and (file := _module_file(root, [top, *inner])):
            return UserCode(file.resolve(), dotted, root.resolve(), name)
        if here.is_dir() and inner and (here / "__init__.py").is_file():
            known = [path.stem for path in here.glob("*.py") if path.stem != "__init__"]
            raise ConfigError(f"no module `{dotted}` in {here}{nearest(inner[0], known)}")
    raise ConfigError(f"no module `{dotted}`: neither beside the recipe ({base}) nor installed in {sys.prefix}")


def _installed(top: str) -> list[Path]:
    """The folders that hold an installed top-level module; looking for one that has no dot runs none of its code."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    places = list(spec.submodule_search_locations or ()) or ([spec.origin] if spec.has_location and spec.origin else [])
    return [Path(place).parent for place in places]


def _module_file(root: Path, parts: list[str]) -> Path | None:
    path = root.joinpath(*parts)
    candidates = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


@cache
def _read(file: Path, stamp: tuple[int, int]) -> ast.Module:
    return ast.parse(file.read_bytes(), str(file))


def _parsed(file: Path) -> ast.Module:
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


def _with_imports(file: Path) -> set[Path]:
    """A file outside any package, and those beside it that it imports, directly or not."""
    found, queue = {file}, [file]
    while queue:
        for node in ast.walk(_parsed(queue.pop())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in names:
                top = name.partition(".")[0]
                beside = [file.parent / f"{top}.py", *(file.parent / top).rglob("*.py")]
                new = {path for path in beside if path.is_file()} - found
                found |= new
                queue += new
    return found


def _import(code: UserCode) -> Any:
    if "." in code.module or code.module == code.file.stem or code.file.name == "__init__.py":
        module = importlib.import_module(code.module)
        if Path(module.__file__ or "").resolve() != code.file:
            raise ImportError(f"`{code.module}` is {module.__file__} here, another module of this name: rename one")
        return module
    spec = importlib.util.spec_from_file_location(code.module, code.file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[code.module] = module  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    return module


def _beside(filename: str, folder: Path) -> bool:
    return Path(filename).is_absolute() and folder in Path(filename).parents and "site-packages" not in filename
