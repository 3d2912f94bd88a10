"""CONTRIBUTING's "to add X, write Y": a toy of each kind in a package elsewhere and one entry in its table, and the
recipe, the plan, the suggestions, the schema and the code that runs it all know it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanoalign import plan
from nanoalign.common.errors import ConfigError
from nanoalign.common.table import Entry
from nanoalign.data_recipes.catalog import Source, catalog
from nanoalign.data_recipes.chat import CHAT_FORMATS, chat_format
from nanoalign.data_recipes.conversation import Answer, Message
from nanoalign.data_recipes.selection import load as load_rows
from nanoalign.evaluation.benchmarks import BENCHMARKS
from nanoalign.plan_text import render_plan
from nanoalign.recipe.json_schema import json_schema
from nanoalign.recipe.load import RecipeError, dump, load
from nanoalign.reward import REWARDS, Sample, make_reward
from nanoalign.reward.table import RewardEntry, verifiers
from nanoalign.rollouts.engines import ENGINES
from nanoalign.rollouts.environments import ENVIRONMENTS, EnvironmentEntry, environment
from nanoalign.stages import STAGES

ROOT = Path(__file__).parents[2]
TOYS = """
import json
from typing import Literal

from nanoalign.common.config import Section
from nanoalign.data_recipes.chat.chatml import ChatML
from nanoalign.data_recipes.conversation import Message
from nanoalign.rollouts.environments.base import Task


class ToyChat(ChatML):
    def __init__(self):
        super().__init__("toy-chat", "You are a toy.")


def brevity(sample):
    return 1 / (1 + len(sample.answer.content))


class ToyRoom:
    name = "toy-room"

    def tasks(self, split):
        return [Task("1", (Message("user", "Say yes."),), (), split, {})]

    def start(self, task):
        return ToyEpisode()


class ToyEpisode:
    said = ""

    def step(self, answer):
        self.said = answer.content
        return ()

    def success(self):
        return self.said == "yes"
"""
STAGE = '''
from typing import Literal

from nanoalign.common.config import Section


class ToyStage(Section):
    """A toy."""

    kind: Literal["toy"]
    from_: str
    """What it copies."""
    loud: bool = False
    """Whether it is loud."""


def run(config, mixtures, context):
    import shutil

    shutil.copytree(context.inputs["from"], context.folder / "model")
    return {"loud": float(config.loud)}
'''.replace("    from_: str\n", '    from_: str = Field(alias="from")\n').replace(
    "from nanoalign.common", "from pydantic import Field\n\nfrom nanoalign.common"
)
ENGINE = '''
from typing import Literal

from nanoalign.common.config import Section


class ToySettings(Section):
    """A toy."""

    kind: Literal["toy"] = "toy"
    loud: bool = False
    """Whether it is loud."""


def open_toy(settings, opening):
    return settings.kind, settings.loud, opening.model
'''
ENTRY = """
from nanoalign.stages import STAGES, StageEntry
from toy_stage import ToyStage

STAGES["toy"] = StageEntry("toy_stage:run", "copies a model", ToyStage, ("common",))
"""
RECIPE = """
name: toys
seed: 1
model: builtin:miniature-base
chat: nemotron-nano-v2
data: {sums: {sources: {miniature:math: 8}}}
stages:
  first: {kind: sft, from: base, data: sums, train: {learning_rate: 1e-3}}
  asked:
    kind: grpo
    from: base
    data: sums
    reward: {math: 1.0}
    rollouts: {max_tokens: 16}
    train: {learning_rate: 1e-4, batch_size: 16}
  played:
    kind: dpo
    from: base
    environment: miniature-workplace
    tasks_per_round: 4
    held_out_tasks: 4
    rollouts: {max_tokens: 16}
    train: {learning_rate: 1e-4, batch_size: 4}
"""
TABLES = {"chat": CHAT_FORMATS, "reward": REWARDS, "environment": ENVIRONMENTS}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, rows and the toys' package, which can be imported."""
    (tmp_path / "toys.py").write_text(TOYS, encoding="utf-8")
    (tmp_path / "toys.yaml").write_text(RECIPE, encoding="utf-8")
    row = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toys", raising=False)
    return tmp_path


def planned(folder: Path, *overrides: str) -> str:
    """What the plan and the resolved recipe show."""
    recipe = load(str(folder / "toys.yaml"), overrides, data_root=folder, check_files=True)
    return render_plan(plan.make_plan(recipe, folder / "runs", folder)) + dump(recipe)


def test_a_data_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Source(about="a toy", licence="MIT", domain="chat", adapter="normal", files={"train": "rows.jsonl"})
    monkeypatch.setitem(catalog(), "toy-source", toy)
    assert "toy-source" in planned(folder, "data.sums.sources={toy-source: 1}")
    with pytest.raises(RecipeError, match="unknown source `toy-sauce`; did you mean `toy-source`"):
        planned(folder, "data.sums.sources={toy-sauce: 1}")
    assert load_rows("toy-source", 1, "train", folder, 0).conversations[0].messages[-1].content == "2"


@pytest.mark.parametrize(
    ("key", "name", "typo", "entry", "override"),
    [
        ("chat", "toy-chat", "toy-chatt", Entry("toys:ToyChat", "a toy's chat"), "chat={}"),
        ("reward", "toy_brevity", "toy_brevty", RewardEntry("toys:brevity", "a toy's brevity", each=True),
         "stages.asked.reward={{{}: 1.0}}"),
        ("environment", "toy-room", "toy-rom", EnvironmentEntry("toys:ToyRoom", "a toy's room"),
         "stages.played.environment={}"),
    ],
)  # fmt: skip
def test_an_entry_is_known_everywhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str, name: str, typo: str, entry: Entry, override: str
) -> None:
    monkeypatch.setitem(TABLES[key], name, entry)  # type: ignore[arg-type]
    assert name in planned(folder, override.format(name))
    assert (key == "chat") == ("toys" in sys.modules)  # which the plan renders samples in
    with pytest.raises(RecipeError, match=f"did you mean `{name}`"):
        planned(folder, override.format(typo))
    assert f"- {name}: {entry.about}" in json_schema()


def test_a_chat_format_renders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHAT_FORMATS, "toy-chat", Entry("toys:ToyChat", ""))
    chat = chat_format("toy-chat")
    assert "You are a toy." in chat.prompt([Message("user", "Hi")]) and "You are a toy." in chat.template()


def test_a_reward_scores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "toy_brevity", RewardEntry("toys:brevity", "", each=True))
    assert make_reward({"toy_brevity": 2.0}).score([Sample((), Answer("abc"))]) == [0.5]
    with pytest.raises(ConfigError, match="unknown reward `toy_brevty`; did you mean `toy_brevity`"):
        make_reward({"toy_brevty": 1.0})


def test_an_environment_plays_an_episode(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENTS, "toy-room", EnvironmentEntry("toys:ToyRoom", ""))
    room = environment("toy-room", None)
    episode = room.start(room.tasks("train")[0])
    assert not episode.step(Answer("yes")) and episode.success()


def test_a_kind_of_stage(folder: Path) -> None:
    """In a process of its own: the recipe's union of stages is made of the table when it is first imported."""
    (folder / "toy_stage.py").write_text(STAGE, encoding="utf-8")
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("1", encoding="utf-8")
    (folder / "toys.yaml").write_text(
        RECIPE.replace("first: {kind: sft, from: base, data: sums, train: {learning_rate: 1e-3}}",
                       "first: {kind: toy, from: base, loud: true}"), encoding="utf-8",
    )  # fmt: skip
    code = (
        ENTRY
        + """
import sys
from pathlib import Path
from nanoalign import plan
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.plan_text import render_plan
from nanoalign.recipe.json_schema import json_schema
from nanoalign.recipe.load import RecipeError, load
from nanoalign.stages import run_stage

recipe, folder = load("toys.yaml"), Path("runs/toys/first")
assert "first  toy from base" in render_plan(plan.make_plan(recipe, Path("runs"), None)), "the plan"
assert "torch" not in sys.modules, "torch in the plan"
assert "Whether it is loud." in json_schema(), "the schema"
for wrong, said in (("stages.first.kind=toyy", "unknown `toyy`; did you mean `toy`?"),
                    ("stages.first.lout=true", "unknown key; did you mean `loud`?"),
                    ("stages.first.from=frst", "unknown stage `frst`")):
    try:
        load("toys.yaml", [wrong])
        raise AssertionError(wrong)
    except RecipeError as error:
        assert said in str(error), str(error)
context = StageContext(name="first", folder=folder, inputs={"from": Path("model")}, chat="chatml", seed=1,
                       data_root=None, log=StageLog(folder))
assert run_stage(recipe, context) == {"loud": 1.0} and (folder / "model/weights").is_file(), "the run"
"""
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_rollout_engine(folder: Path) -> None:
    """Likewise: an entry, its settings and a function, and the recipe's union of engines has it."""
    (folder / "toy_engine.py").write_text(ENGINE, encoding="utf-8")
    code = """
import importlib

from nanoalign.rollouts import config
from nanoalign.rollouts.engines import ENGINES, EngineEntry
from toy_engine import ToySettings

ENGINES["toy"] = EngineEntry("toy_engine:open_toy", "a toy", ToySettings)
importlib.reload(config)  # an entry that is written in the table is there when the sections are first made
from nanoalign.data_recipes.chat import chat_format
from nanoalign.recipe.json_schema import json_schema
from nanoalign.recipe.load import RecipeError, load
from nanoalign.rollouts import open_engine
from tests.tiny import tiny_tokenizer

NAME = "nemotron-nano-v2"
recipe = load("toys.yaml", ["stages.asked.rollouts.engine=toy", "stages.asked.rollouts.engine.loud=true"])
opened = open_engine(recipe.stages["asked"].rollouts.engine, "model", tiny_tokenizer(NAME), chat_format(NAME))
assert opened == ("toy", True, "model"), opened
assert "- toy: a toy" in json_schema() and "Whether it is loud." in json_schema(), "the schema"
for wrong, said in (("toyy", "unknown `toyy`; did you mean `toy`?"),
                    ("{kind: toy, lout: true}", "unknown key; did you mean `loud`?"),
                    ("{kind: hf, loud: true}", "hf has no such key; toy has it")):
    try:
        load("toys.yaml", [f"stages.asked.rollouts.engine={wrong}"])
        raise AssertionError(wrong)
    except RecipeError as error:
        assert said in str(error), str(error)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("table", [*TABLES.values(), ENGINES, STAGES])
def test_every_entry_leads_to_its_code(table: dict[str, Entry]) -> None:
    for entry in table.values():
        assert callable(entry.load()) and entry.about


def test_a_format_bears_its_name_in_the_table() -> None:
    assert all(chat_format(name).name == name for name in CHAT_FORMATS)


def test_the_page_of_names_lists_the_tables() -> None:
    page = (ROOT / "docs/names.md").read_text(encoding="utf-8")
    for title, table in (("Rewards", REWARDS), ("Environments", ENVIRONMENTS), ("Chat formats", CHAT_FORMATS),
                         ("Rollout engines", ENGINES),
                         ("Kinds of stage", STAGES), ("Benchmarks", BENCHMARKS)):  # fmt: skip
        rows = "".join(f"| `{name}` | {entry.about} |\n" for name, entry in table.items())
        assert f"## {title}\n| Name | What it is |\n|---|---|\n{rows}" in page


def test_the_rewards_page_says_what_each_verifier_requires() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `", (ROOT / "reward/README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == list(verifiers())
