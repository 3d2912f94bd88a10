"""A user's own Python objects, named ``my_code.py:Name`` (a file beside the recipe) or ``package.module:Name``.

They are found and checked by reading their source (``ast``): a plan runs no user code. :func:`load` imports.
"""

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.util
import re
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.files import sha256_file
from nanoalign.common.printable import nearest
from nanoalign.common.source_code import LIBRARIES, Definition, defined, module_file, parsed, root_of

_SPELLING = re.compile(r"(?P<place>[^:]+(?:\.py)?):(?P<name>[A-Za-z_]\w*)")
_LOADING = threading.RLock()
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
    code = _in_file(base / Path(place).expanduser(), name) if _is_path(place) else _in_module(place, name, base)
    definition(code)
    return code


def anchored(spelling: str, folder: Path) -> str:
    """A name with the place of its file made absolute, where that is relative to ``folder`` or a module in it; of an
    installed module, and of what is not there, as it is."""
    place, colon, name = spelling.rpartition(":") if ":" in spelling else (spelling, "", "")
    if _is_path(place):
        return f"{(folder / Path(place).expanduser()).resolve()}{colon}{name}"
    try:
        code = find(spelling, folder)
    except ConfigError:
        return spelling  # the checks say what is wrong
    return str(code) if folder in code.file.parents else spelling


def definition(code: UserCode) -> Definition:
    """What the source says about the object.

    Raises:
        ConfigError: the source does not parse, or defines no such name.
    """
    return defined(code.file, code.name)


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
                yield name, f"`{code.name}` ({what.place}) takes no such parameter{nearest(name, names)}"
    for parameter in what.parameters:
        if parameter.required and parameter.name not in {*given, *supplied}:
            yield parameter.name, f"`{code.name}` ({what.place}) needs the parameter `{parameter.name}`"


def failing_import(code: UserCode) -> str | None:
    """The first import of the object's file, outside of any ``try``, that must fail: its line, and why."""
    for node in parsed(code.file).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
        elif isinstance(node, ast.ImportFrom) and code.root == code.file.parent:
            return f"{code.file}:{node.lineno}: a relative import needs its package: there is no __init__.py beside it"
        for top in (name.partition(".")[0] for name in names):
            beside = (code.root / top).is_dir() or (code.root / f"{top}.py").is_file()
            if not beside and top not in sys.modules and _spec(top) is None:
                return f"{code.file}:{node.lineno}: imports `{top}`, which is not installed"
    return None


def load(code: UserCode) -> Any:
    """The object; imports its module, once in a process (a file outside any package again when it changed). Its folder
    comes last on ``sys.path``: a ``datasets.py`` beside the recipe hides no library.

    Raises:
        ConfigError: the module cannot be imported (with the user's line), or has no such name.
    """
    if str(code.root) not in sys.path:
        sys.path.append(str(code.root))
    try:
        with _LOADING:
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
    if code.root != code.file.parent:
        package = code.root / code.module.partition(".")[0]
        files = sorted(package.rglob("*.py")) if package.is_dir() else [code.file]
    else:
        files = [code.file] if code.root.name in LIBRARIES else sorted(_with_imports(code.file))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(code.root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def blame(error: BaseException, file: Path) -> str:
    """``file:line`` of the innermost frame of a traceback that is in ``file`` or, unless in a library, a file beside or
    below it; of a syntax error, its own place."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _beside(frame.filename, file)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else str(file)


def reason(error: BaseException) -> str:
    """An error as one line: ``KeyError: 'id'``."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def portable(value: Any) -> Any:
    """JSON data in which ``/folder/my_code.py:Name`` is ``my_code.py:Name``: a run that is moved stays the same run.
    Two keys of a mapping that would become one stay."""
    if isinstance(value, str):
        match = _SPELLING.fullmatch(value)
        return f"{Path(match['place']).name}:{match['name']}" if match and match["place"].endswith(".py") else value
    if isinstance(value, Mapping):
        counts = Counter(map(portable, value))
        return {short if counts[short := portable(key)] == 1 else key: portable(item) for key, item in value.items()}
    return [portable(item) for item in value] if isinstance(value, list | tuple) else value


def _is_path(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _in_file(path: Path, name: str) -> UserCode:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, not a Python file")
    if not path.is_file():
        near = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"no such file: {path}{nearest(path.name, near)}")
    path = path.resolve()
    root = root_of(path)
    if root != path.parent:  # part of a package: its relative imports are to work
        parts = path.relative_to(root).with_suffix("").parts
        return UserCode(path, ".".join(part for part in parts if part != "__init__"), root, name)
    unique = hashlib.sha256(f"{path} {sha256_file(path)}".encode()).hexdigest()[:8]
    return UserCode(path, f"{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{unique}", root, name)


def _in_module(dotted: str, name: str, base: Path) -> UserCode:
    if not _MODULE.fullmatch(dotted):
        raise ConfigError(f"expected FILE.py:NAME or package.module:NAME, got `{dotted}:{name}`")
    top, *inner = dotted.split(".")
    for root in [base, *_installed(top)]:
        here = root / top
        if (here.is_dir() or here.with_suffix(".py").is_file()) and (file := module_file(root, [top, *inner])):
            return UserCode(file.resolve(), dotted, root.resolve(), name)
        if here.is_dir() and inner and (here / "__init__.py").is_file():
            known = [path.stem for path in here.glob("*.py") if path.stem != "__init__"]
            raise ConfigError(f"no module `{dotted}` in {here}{nearest(inner[0], known)}")
    if not inner and _spec(top) is not None:
        raise ConfigError(f"module `{dotted}` has no Python source")
    raise ConfigError(f"no module `{dotted}`: neither beside the recipe ({base}) nor installed in {sys.prefix}")


def _spec(top: str) -> importlib.machinery.ModuleSpec | None:
    """Of an installed top-level module; looking for one that has no dot runs none of its code."""
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


def _installed(top: str) -> list[Path]:
    """The folders that hold an installed top-level module."""
    spec = _spec(top)
    if spec is None:
        return []
    places = list(spec.submodule_search_locations or ()) or ([spec.origin] if spec.has_location and spec.origin else [])
    return [Path(place).parent for place in places]


def _with_imports(file: Path) -> set[Path]:
    """A file outside any package, and those beside it that it imports, directly or not."""
    found, queue = {file}, [file]
    while queue:
        try:
            nodes = list(ast.walk(parsed(queue.pop())))
        except ConfigError:  # importing it says so
            continue
        for node in nodes:
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


def _beside(filename: str, file: Path) -> bool:
    path = Path(filename)
    return path == file or (path.is_absolute() and file.parent in path.parents and not {*LIBRARIES} & {*path.parts})
