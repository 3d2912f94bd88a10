"""A user's own code is found, checked and hashed without being run."""

from pathlib import Path

import pytest

from nanoalign.common.errors import ConfigError
from nanoalign.common.user_code import blame, code_hash, definition, find, load, parameter_faults, portable

SOURCE = """
raise RuntimeError("a plan runs no user code")
from dataclasses import dataclass
import elsewhere

def plain(samples, *, weight=1.0): ...
def anything(samples, **columns): ...
async def later(x): ...
class Shop:
    def __init__(self, size, kind="a"): ...
    def tasks(self, split): ...
class Small(Shop):
    def reset(self, task): ...
class Open(elsewhere.Base): ...
class Bare: ...
@dataclass
class Data:
    size: int
    kind: str = "a"
@elsewhere.wrap
def wrapped(x): ...
made = plain
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_code.py").write_text(SOURCE)
    package = tmp_path / "user_pkg_a"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('not at plan time')")
    (package / "envs.py").write_text("from .other import y\ndef make(): return y\n")
    (package / "other.py").write_text("y = 3\n")
    return tmp_path


@pytest.mark.parametrize(
    "name, kind, parameters",
    [
        ("plain", "function", {"samples": True, "weight": False}),
        ("later", "async function", {"x": True}),
        ("Shop", "class", {"size": True, "kind": False}),
        ("Small", "class", {"size": True, "kind": False}),
        ("Open", "class", None),
        ("Bare", "class", {}),
        ("Data", "class", {"size": True, "kind": False}),
        ("wrapped", "function", None),
        ("made", "value", None),
        ("elsewhere", "value", None),
    ],
)
def test_what_the_source_says(folder: Path, name: str, kind: str, parameters: dict[str, bool] | None) -> None:
    found = definition(find(f"my_code.py:{name}", folder))
    assert found.kind == kind
    assert (found.parameters and {each.name: each.required for each in found.parameters}) == (
        parameters or found.parameters
    )


def test_methods_follow_the_bases_that_can_be_read(folder: Path) -> None:
    assert definition(find("my_code.py:Small", folder)).methods == {"__init__", "tasks", "reset"}
    assert definition(find("my_code.py:Open", folder)).methods is None


@pytest.mark.parametrize(
    "spelling, message",
    [
        ("my_code.py", "expected FILE.py:NAME"),
        ("my_code.py:Shop:x", "expected FILE.py:NAME"),
        ("my_cod.py:Shop", "no such file: .*my_cod.py; did you mean `my_code.py`"),
        ("my_code.py:Shopp", "defines no `Shopp`; did you mean `Shop`"),
        ("user_pkg_a.env:make", "no module `user_pkg_a.env` in .*; did you mean `envs`"),
        ("user_pkg_a.envs:mak", "defines no `mak`; did you mean `make`"),
        ("no_such_package.x:y", "neither beside the recipe .* nor installed"),
        ("a b:c", "expected FILE.py:NAME"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, spelling: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(spelling, folder)


def test_a_syntax_error_has_its_line(folder: Path) -> None:
    (folder / "bad.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(ConfigError, match=r"bad.py:2: not valid Python"):
        find("bad.py:f", folder)


def test_parameters_are_checked_by_name(folder: Path) -> None:
    shop = find("my_code.py:Shop", folder)
    assert not list(parameter_faults(shop, ["size"]))
    assert not list(parameter_faults(shop, [], supplied=["size"]))
    assert [name for name, _ in parameter_faults(shop, ["siz"])] == ["siz", "size"]
    assert "did you mean `size`" in next(iter(parameter_faults(shop, ["siz"])))[1]
    assert not list(parameter_faults(find("my_code.py:anything", folder), ["samples", "answer"]))


def test_loading_names_the_users_line(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"my_code.py:2: cannot be imported: RuntimeError: a plan runs no user code"):
        load(find("my_code.py:Shop", folder))


def test_a_file_of_a_package_keeps_its_relative_imports(folder: Path) -> None:
    (folder / "user_pkg_a/__init__.py").write_text("")
    (folder / "user_pkg_a").rename(folder / "user_pkg_b")
    one, other = find("user_pkg_b.envs:make", folder), find("user_pkg_b/envs.py:make", folder)
    assert one == other
    assert load(one)() == 3
    twin = folder / "elsewhere/user_pkg_b"
    twin.mkdir(parents=True)
    for name in ("__init__.py", "other.py", "more.py"):
        (twin / name).write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"another module of this name|No module named"):
        load(find("user_pkg_b.more:x", twin.parent))


def test_the_hash_follows_what_is_imported_from_beside(folder: Path) -> None:
    (folder / "first.py").write_text("import second\ndef f(): ...\n")
    (folder / "second.py").write_text("x = 1\n")
    (folder / "third.py").write_text("x = 1\n")
    code = find("first.py:f", folder)
    before = code_hash(code)
    (folder / "third.py").write_text("x = 2\n")
    assert code_hash(code) == before
    (folder / "second.py").write_text("x = 2\n")
    assert code_hash(code) != before


def test_blame_is_the_innermost_line_of_the_users(folder: Path) -> None:
    (folder / "raises.py").write_text("import json\n\ndef f():\n    json.loads('{')\n")
    code = find("raises.py:f", folder)
    try:
        load(code)()
    except ValueError as error:
        assert blame(error, code.file).endswith("raises.py:4")


def test_folders_leave_what_names_a_run() -> None:
    assert portable({"name": "/a/b/my.py:Shop", "x": ["builtin:y", 1]}) == {"name": "my.py:Shop", "x": ["builtin:y", 1]}
