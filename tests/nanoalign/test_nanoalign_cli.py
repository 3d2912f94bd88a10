"""The command line: quick to answer, clear about what is wrong."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.cli_data import smaller
from nanoalign.data_recipes.config import Mixture, SourceUse
from nanoalign.launch import command as launch_command
from nanoalign.recipe.load import load, shipped
from nanoalign.recipe.schema import Launch, Recipe


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom nanoalign.cli import main\nsys.argv = ['nanoalign', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'pydantic', 'yaml', 'rich', 'numpy', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in (
        "new",
        "run",
        "plan",
        "status",
        "push",
        "recipes",
        "schema",
        "report",
        "data",
        "merge",
        "serve",
        "chat",
        "budget-curve",
    ):
        assert f"\n  {name} " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "Did you mean 'run'?"),
        (["recipes", "copy"], "No such command 'copy'"),
        (["plan"], "Missing argument 'RECIPE'"),
        (["plan", "miniature", "--sett", "seed=1"], "Possible options: --set"),
        (["plan", "miniature", "--data-root", "/no/such/folder"], "does not exist"),
        (["plan", "miniature", "--device", "tpu"], "--set device=tpu: device: expected 'auto', 'cpu' or 'cuda'"),
        (["run", "miniature", "--force", "refin"], "unknown stage `refin`; did you mean `refine`?"),
        (["run", "miniature", "--until", "refin"], "unknown stage `refin`; did you mean `refine`?"),
        (["recipes", "cp", "miniatur"], "did you mean `miniature`?"),
        (["report", "/no/such/folder"], "does not exist"),
        (["data", "show", "miniature", "--stage", "chat"], "unknown SFT stage `chat`"),
        (["data", "stats", "miniature", "--data", "tool"], "did you mean `tools`?"),
        (["merge", "a", "b", "--out", "c", "--alphas", "2"], "alpha"),
        (["merge", "a", "b", "--out", "c", "--set", "seed=1"], "--evaluate"),
        (["merge", "a", "--out", "c", "--evaluate", "miniature"], "two models"),
        (["serve", "builtin:miniature-base", "--host", "0.0.0.0"], "give an API key"),
        (["serve", "builtin:nothing"], "builtin:nothing"),
        (["budget-curve", "builtin:miniature-base", "miniature", "--budgets", "1,two"], "invalid literal"),
        (["budget-curve", "builtin:miniature-base", "miniature", "--suite", "reasonin"], "did you mean `reasoning`?"),
    ],
)
def test_wrong_calls_end_with_2(arguments: list[str], said: str) -> None:
    status, output = call(*arguments)
    assert status == 2 and said in output and "Traceback" not in output, output


def test_recipes(tmp_path: Path) -> None:
    status, output = call("recipes", "ls")
    assert status == 0 and "miniature " in output and "laptop" in output
    status, output = call("recipes", "cp", "miniature", str(tmp_path))
    assert status == 0 and output.split() == [str(tmp_path / "miniature.yaml"), str(tmp_path / "schema.json")]
    assert load(str(tmp_path / "miniature.yaml")) == load("miniature")
    status, output = call("recipes", "cp", "miniature", str(tmp_path))
    assert status == 2 and "exists already" in output
    assert call("recipes", "cp", "miniature", str(tmp_path / "mine.yaml"))[0] == 0


def test_schema(tmp_path: Path) -> None:
    status, output = call("schema")
    assert status == 0
    assert call("schema", "--out", str(tmp_path / "schema.json"))[0] == 0
    assert (tmp_path / "schema.json").read_text(encoding="utf-8") == output


def test_data_sources_lists_all() -> None:
    from nanoalign.data_recipes.catalog import catalog

    status, output = call("data", "sources")
    assert status == 0 and all(f"{name} " in output for name in catalog()) and "miniature:NAME" in output


SOURCES = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.integers(1, 10**6), min_size=1)


@given(SOURCES, st.integers(1, 50))
def test_a_smaller_mixture_keeps_every_source(sources: dict[str, int], samples: int) -> None:
    mixture = Mixture.model_validate({"sources": sources})
    few = {name: use.samples for name, use in smaller(mixture, samples).sources.items() if isinstance(use, SourceUse)}
    assert set(few) == set(sources) and all(1 <= few[name] <= sources[name] for name in sources)
    assert sum(few.values()) <= samples + len(sources)


def test_chat_with_a_server_needs_its_model_and_tokenizer() -> None:
    code, output = call("chat", "http://127.0.0.1:1/v1")
    assert code == 2 and "name its model and give that model's tokenizer" in output


def recipe(launch: str) -> Recipe:
    adapter: TypeAdapter[Launch] = TypeAdapter(Launch)
    return load("miniature").model_copy(update={"launch": adapter.validate_python(yaml.safe_load(launch))})


def test_launch_here(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    stage = ["-m", "nanoalign.stage_process", str(job)]
    assert launch_command(recipe("{kind: local}"), "foundation", job).argv == [sys.executable, *stage]
    two = launch_command(recipe("{kind: local, processes: 2, zero: 2}"), "foundation", job)
    assert two.argv == [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *stage]
    assert two.environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == str(tmp_path / "deepspeed.json")
    assert '"stage": 2' in (tmp_path / "deepspeed.json").read_text()
    alone = launch_command(recipe("{kind: local, processes: 2, zero: 2}"), "verdict", job)
    assert alone.argv == [sys.executable, *stage] and alone.environment == {"PYTHONSAFEPATH": "1"}


def test_launch_through_slurm_and_ray(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    slurm = recipe("{kind: slurm, nodes: 4, gpus_per_node: 8, partition: batch}")
    argv = launch_command(slurm, "foundation", job).argv
    assert (
        argv[:2] == ["srun", "--job-name=miniature-foundation"] and "--nodes=4" in argv and "--partition=batch" in argv
    )
    assert "--nnodes=4 --nproc-per-node=8 --node-rank=$SLURM_NODEID" in argv[-1] and argv[-1].endswith(str(job))
    assert "--nodes=1" in launch_command(slurm, "verdict", job).argv
    argv = launch_command(recipe("{kind: ray, address: 'http://head:8265', gpus: 2}"), "foundation", job).argv
    assert argv[:5] == ["ray", "job", "submit", "--address=http://head:8265", "--entrypoint-num-gpus=2"]


def test_a_copied_recipe_is_the_copys_own(tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    assert call("recipes", "cp", "miniature", str(copy))[0] == 0
    assert f"# Launch: nanoalign run {copy}  " in copy.read_text() and "recipes/miniature.yaml" not in copy.read_text()
    assert load(str(copy)) == load("miniature")


@pytest.mark.parametrize("name", shipped())
def test_every_recipe_can_be_copied_and_says_what_it_is(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    status, output = call("recipes", "cp", name, str(folder))
    assert status == 0 and str(folder / f"{name}.yaml") in output
    assert load(str(folder / f"{name}.yaml")) == load(name)
    header = (folder / f"{name}.yaml").read_text().partition("\nname:")[0]
    assert f"'{folder}/{name}.yaml'" in header and f" recipes/{name}.yaml" not in header
    [line] = [line for line in call("recipes", "ls")[1].splitlines() if line.split()[0] == name]
    assert len(line.split()) > 5


def test_the_version() -> None:
    from importlib import metadata

    assert call("--version") == (0, f"nanoalign {metadata.version('nanoalign')}\n")


def test_errors_show_no_control_sequences(tmp_path: Path) -> None:
    file = tmp_path / "hostile.yaml"
    file.write_text('name: "\\e[2J\\e]0;title\\a[red]x[/]"\n', encoding="utf-8")
    status, output = call("plan", str(file))
    assert status == 2 and "\x1b" not in output and "[red]x[/]" in output


def test_data_words_are_no_markup(tmp_path: Path) -> None:
    """Rows whose every text is markup or a control sequence are shown as they are, and the sequences not at all."""
    hostile = "[red]x[/] [/nothing] [link=http://a]\x1b[31m\x1b]52;c;Y2xpcA==\x07\u202e"
    told = "[red]x[/] [/nothing] [link=http://a]"
    answer = {"role": "assistant", "content": hostile, "reasoning_content": ""}
    row = {"messages": [{"role": "user", "content": hostile}, answer],
           "domain": hostile, "licence": hostile, "id": hostile}  # fmt: skip
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\nseed: 1\nmodel: builtin:miniature-base\nchat: nemotron-nano-v2\n"
        f"data: {{rows: {{sources: {{'file:{rows}': 1}}}}}}\n"
        "stages: {first: {kind: sft, from: base, data: rows, train: {learning_rate: 1e-3}}}\n", encoding="utf-8"
    )  # fmt: skip
    for command in (["plan"], ["data", "show"], ["data", "stats"]):
        status, output = call(*command, str(recipe))
        assert status == 0 and not set("\x1b\x07\u202e") & set(output), command
        assert command == ["plan"] or told in output.replace("\n", " ") or "[red]x[/]" in output


def test_every_command_that_takes_a_recipe_takes_overrides() -> None:
    from typer.main import get_command

    def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from commands(command, f"{path}{name} ")
            else:
                yield path + name, command

    takes = {
        name: {option for each in command.params for option in each.opts}
        for name, command in commands(get_command(app))
        if any(each.metavar == "RECIPE" or each.name in ("recipe", "settings") for each in command.params)
    }
    assert len(takes) >= 9 and {name for name, options in takes.items() if "--set" not in options} == set()
