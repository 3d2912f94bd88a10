"""Where a recipe's `file:` sources lie: beside it first, then in the working folder; never part of their name."""

import shutil
from pathlib import Path

import pytest

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.selection import build
from nanoalign.graph import data_files, resolved
from nanoalign.plan_data import plan_mixture
from nanoalign.recipe.load import RecipeError, dump, load

RECIPE = """\
name: mine
seed: 1
model: builtin:miniature-base
chat: nemotron-nano-v2
data: {rows: {sources: {"file:rows.jsonl": 3}}}
stages: {first: {kind: sft, from: base, data: rows, train: {learning_rate: 1.0e-3}}}
"""


def write(folder: Path, said: str, count: int = 9) -> None:
    folder.mkdir(exist_ok=True)
    row = '{"messages": [{"role": "user", "content": "%s %d"}, {"role": "assistant", "content": "on"}]}\n'
    (folder / "rows.jsonl").write_text("".join(row % (said, n) for n in range(count)))


def said(recipe: str) -> list[str]:
    mixture = load(recipe, check_files=True).data["rows"]
    return [each.messages[0].content for each in build(mixture, None, 0).conversations]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    write(folder, "beside")
    (folder / "mine.yaml").write_text(RECIPE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_beside_the_recipe_first_then_in_the_working_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = str(project / "mine.yaml")
    write(Path(), "working")
    first = said(recipe)
    assert all(text.startswith("beside") for text in first)
    monkeypatch.chdir(project)
    assert said("mine.yaml") == first, "the draw depends on the name as it is written, not on where it was run"
    monkeypatch.chdir(project.parent / "elsewhere")
    (project / "rows.jsonl").unlink()
    assert all(text.startswith("working") for text in said(recipe))


def test_an_error_names_both_places(project: Path) -> None:
    (project / "rows.jsonl").rename(project / "row.jsonl")
    with pytest.raises(RecipeError) as error:
        load(str(project / "mine.yaml"), check_files=True)
    for part in (str(project), str(project.parent / "elsewhere"), "did you mean `row.jsonl`", "mine.yaml:5"):
        assert part in str(error.value)
    mixture = load(str(project / "mine.yaml")).data["rows"]
    with pytest.raises(DataError, match=f"no such file rows.jsonl in {project} or {project.parent / 'elsewhere'}"):
        build(mixture, None, 0)


def test_a_moved_project_is_the_same_run_and_a_dumped_recipe_finds_its_rows(project: Path) -> None:
    recipe = load(str(project / "mine.yaml"))
    moved = project.parent / "moved"
    shutil.copytree(project, moved)
    again = load(str(moved / "mine.yaml"))
    assert resolved(recipe, "first") == resolved(again, "first")
    assert data_files(recipe.data.values(), None) == data_files(again.data.values(), None) != []
    assert plan_mixture("rows", recipe.data["rows"], recipe.chat, None, None).samples == 3
    Path("dumped.yaml").write_text(dump(recipe))
    assert load("dumped.yaml", check_files=True) == recipe


def test_with_extends_each_file_says_its_own(project: Path) -> None:
    write(Path(), "child")
    Path("child.yaml").write_text("extends: ../project/mine.yaml\nstages: {first: {train: {learning_rate: 2.0e-3}}}\n")
    assert all(text.startswith("beside") for text in said("child.yaml"))
    more = Path("more.yaml")
    more.write_text('extends: ../project/mine.yaml\ndata: {rows: {sources: {"file:rows.jsonl": 4}}}\n')
    assert all(text.startswith("child") for text in said("more.yaml"))
