"""A user's own code is found, checked and hashed without being run."""

from pathlib import Path

import pytest

from nanoalign.common.errors import ConfigError
from nanoalign.common.user_code import (
    blame,
    code_hash,
    definition,
    failing_import,
    find,
    load,
    parameter_faults,
    portable,
)  # fmt: skip

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
    (folder / "second.py").rename(folder / "user_pkg_a/second.py")
    (folder / "user_pkg_a/__init__.py").unlink()
    (folder / "first.py").rename(folder / "user_pkg_a/first.py")
    (folder / "user_pkg_a/second.py").write_text("x = 1\n")
    assert code_hash(find("user_pkg_a/first.py:f", folder)) == before


def test_what_is_imported_from_beside_is_looked_up_there(folder: Path) -> None:
    (folder / "shows.py").write_text(
        "from my_code import plain as shown\nfrom my_code import plane\nfrom shows import x\n"
    )
    found = definition(find("shows.py:shown", folder))
    assert found.place == f"{folder}/my_code.py:6" and found.parameters is not None
    with pytest.raises(ConfigError, match=r"my_code.py defines no `plane`; did you mean `plain`"):
        find("shows.py:plane", folder)
    assert definition(find("shows.py:x", folder)).kind == "value"  # in circles
    assert definition(find("user_pkg_a/envs.py:y", folder)).place.endswith("other.py:1")


@pytest.mark.parametrize(
    "source, message",
    [
        ("import json\nimport numppy.x\n", "first.py:2: imports `numppy`, which is not installed"),
        ("from . import my_code\n", "first.py:1: a relative import needs its package"),
        ("import json, my_code, zlib\nfrom user_pkg_a.envs import make\ntry:\n    import numppy\nfinally: ...\n", None),
    ],
)
def test_an_import_that_must_fail_is_seen_before(folder: Path, source: str, message: str | None) -> None:
    (folder / "first.py").write_text(source + "def f(): ...\n")
    found = failing_import(find("first.py:f", folder))
    assert found == message if message is None else message in str(found)


def test_a_changed_file_is_imported_again(folder: Path) -> None:
    for number in (1, 2):
        (folder / "first.py").write_text(f"x = {number}\n")
        assert load(find("first.py:x", folder)) == number


def test_blame_is_the_innermost_line_of_the_users(folder: Path) -> None:
    (folder / "raises.py").write_text("import json\n\ndef f():\n    json.loads('{')\n")
    code = find("raises.py:f", folder)
    try:
        load(code)()
    except ValueError as error:
        assert blame(error, code.file).endswith("raises.py:4")


def test_folders_leave_what_names_a_run() -> None:
    assert portable({"name": "/a/b/my.py:Shop", "x": ["builtin:y", 1]}) == {"name": "my.py:Shop", "x": ["builtin:y", 1]}
    assert portable({"/a/my.py:f": 1, "/b/my.py:f": 2, "/b/my.py:g": 3}) == {
        "/a/my.py:f": 1, "/b/my.py:f": 2, "my.py:g": 3}  # fmt: skip
