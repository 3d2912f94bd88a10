"""Distillation from a teacher to a saved student, on models of 60,000 parameters."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from nanoalign.common.errors import ConfigError
from nanoalign.common.stage import StageContext, StageLog
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.config import Mixture
from nanoalign.data_recipes.prepared import prepare
from nanoalign.graph import nodes
from nanoalign.models.config import MeasuredTraining
from nanoalign.models.distillation import Divergence, linear_divergence
from nanoalign.models.loading import load_model, save_model
from nanoalign.models.model_folder import read_tensors
from nanoalign.models.vocabulary import vocabulary_fault
from nanoalign.recipe.load import RecipeError, load
from nanoalign.sft.config import DistillStage, Pack, SFTStage
from nanoalign.sft.data import sft_data
from nanoalign.sft.distill import distil_briefly, run
from nanoalign.sft.stage import run as run_sft
from tests.tiny import tiny_tokenizer

MIXTURES = {"all": Mixture.model_validate({"sources": {"miniature:math": 150}})}
TRAIN = {
    "learning_rate": 1e-2, "batch_size": 4, "micro_batch_size": 2, "dtype": "float32", "checkpoint_every": 2,
    "schedule": "wsd",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """`base`, and `teacher`, which was trained from it."""
    from tests.tiny import tiny_hybrid, token_ids

    folder = tmp_path_factory.mktemp("models")
    save_model(tiny_hybrid(len(tokenizer), **token_ids(tokenizer)), tokenizer, folder / "base")
    config = SFTStage.model_validate({
        "kind": "sft", "from": "base", "data": "all", "pack": {"length": 256}, "train": {**TRAIN, "steps": 20},
    })  # fmt: skip
    run_sft(config, MIXTURES, context(folder / "sft", folder / "base", folder / "base"))
    (folder / "sft" / "model").rename(folder / "teacher")
    return folder


def context(folder: Path, student: Path, teacher: Path) -> StageContext:
    return StageContext(
        name="distilled", folder=folder, inputs={"from": student, "teacher": teacher}, chat="nemotron-nano-v2",
        seed=3, data_root=None, device="cpu", log=StageLog(folder),
    )  # fmt: skip


def stage(train: dict[str, Any], **more: Any) -> DistillStage:
    sections = {"pack": {"length": 256}, "train": {**TRAIN, **train}, **more}
    return DistillStage.model_validate({"kind": "distill", "from": "base", "teacher": "t", "data": "all", **sections})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder / "model").state_dict())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_student_comes_near_its_teacher(models: Path, tmp_path: Path) -> None:
    where = context(tmp_path / "run", models / "base", models / "teacher")
    figures = run(stage({"steps": 20}), MIXTURES, where)
    assert figures["held_out_kl_last"] < 0.3 * figures["held_out_kl_first"]
    assert figures["held_out_loss_last"] < figures["held_out_loss_first"] - 0.5
    start, goal, end = (figures[name] for name in (
        "held_out_loss_first", "teacher_held_out_loss", "held_out_loss_last"))  # fmt: skip
    assert figures["gap_closed"] == pytest.approx((start - end) / (start - goal)) and figures["gap_closed"] > 0.7
    logged = [row for row in rows(where.folder) if "loss" in row]
    assert len(logged) == 20 and all(row["loss"] == pytest.approx(row["kl"], rel=1e-5) for row in logged)
    assert figures["trained_tokens"] == figures["document_tokens"] - figures["documents"]  # all but the first of each


def test_the_figures_are_those_of_whole_logits(models: Path, tmp_path: Path, tokenizer: Any) -> None:
    """Held-out KL and losses, and the first step's loss, against both models' logits and torch's functions."""
    where = context(tmp_path / "run", models / "base", models / "teacher")
    config = stage({"steps": 1}, tokens="answers", temperature=2.0, cross_entropy=0.25)
    figures = run(config, MIXTURES, where)
    student, teacher = load_model(models / "base"), load_model(models / "teacher")
    prepared = prepare(MIXTURES["all"], chat_format("nemotron-nano-v2"), tokenizer, tmp_path / "data", None, 3)
    data = sft_data(config, prepared, 3)

    def sums(documents: Any, tau: float) -> torch.Tensor:
        """KL, the student's and the teacher's loss, tokens."""
        found = torch.zeros(4, dtype=torch.float64)
        for number in range(len(documents)):
            ids, trained = documents[number]
            batch = torch.tensor(ids.tolist())[None]
            keep = torch.from_numpy(trained[1:].copy())
            with torch.no_grad():
                own, theirs = (
                    each(batch, use_cache=False).logits[0, :-1][keep].double() for each in (student, teacher)
                )
            label = batch[0, 1:][keep]
            kl = F.kl_div((own / tau).log_softmax(-1), (theirs / tau).log_softmax(-1), log_target=True, reduction="sum")
            losses = [F.cross_entropy(logits, label, reduction="sum") for logits in (own, theirs)]
            found += torch.stack([kl, *losses, keep.sum().double()])
        return found

    kl, own, theirs, tokens = sums(data.held_out, 1.0).tolist()
    assert figures["held_out_kl_first"] == pytest.approx(kl / tokens, rel=1e-4)
    assert figures["held_out_loss_first"] == pytest.approx(own / tokens, rel=1e-4)
    assert figures["teacher_held_out_loss"] == pytest.approx(theirs / tokens, rel=1e-4)
    first = next(row for row in rows(where.folder) if "loss" in row)
    assert first["loss"] == pytest.approx(0.75 * 4 * first["kl"] + 0.25 * first["cross_entropy"], rel=1e-4)


@pytest.mark.parametrize("top_k", [None, 8])
def test_the_divergence_is_trls(top_k: int | None) -> None:
    """Its on-policy trainer's tiled loss, and the tail that its trainer for teachers behind a server adds."""
    from trl.experimental.server_distillation.server_distillation_trainer import _add_tail_bucket
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(300, 16, requires_grad=True)
    states, head, labels = torch.randn(40, 24), torch.randn(300, 24), torch.randint(0, 300, (40,))
    loss, kl, _ = linear_divergence(hidden, weight, states, head, labels, Divergence(2.0, top_k), 16)
    if top_k is None:
        want = ChunkedDivergenceFunction.apply(hidden, weight, None, states, head, None, 0.0, 2.0)[0].sum()
    else:
        log_p, log_q = ((logits / 2).log_softmax(-1) for logits in (states @ head.T, hidden @ weight.T))
        top = log_p.topk(top_k, -1).indices
        mask = torch.ones_like(top, dtype=torch.bool)
        (p, _), (q, _) = (_add_tail_bucket(log.gather(1, top), mask) for log in (log_p, log_q))
        want = F.kl_div(q, p, log_target=True, reduction="sum")
    assert torch.allclose(kl, want, rtol=1e-4)
    for a, b in zip(torch.autograd.grad(loss, [hidden, weight]), torch.autograd.grad(4 * want, [hidden, weight])):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_half_precision_learns_too(models: Path, tmp_path: Path) -> None:
    where = context(tmp_path / "half", models / "base", models / "teacher")
    figures = run(stage({"steps": 6, "dtype": "bfloat16"}), MIXTURES, where)
    assert figures["held_out_kl_last"] < figures["held_out_kl_first"] - 0.3
    assert {tensor.dtype for tensor in read_tensors(where.folder / "model").values()} == {"BF16"}


def test_phases_in_turn_end_with_the_same_model_after_a_kill_bitwise(models: Path, tmp_path: Path) -> None:
    phases = [{"length": 128, "steps": 3, "batch_size": 6}, {"length": 256, "steps": 5, "learning_rate": 5e-3}]
    config = stage({}, pack={"length": 256, "over_long": "drop"}, phases=phases, top_k=16)
    whole = context(tmp_path / "whole", models / "base", models / "teacher")
    first = run(config, MIXTURES, whole)
    assert (
        first["steps"] == 8 and first["held_out_kl_phase_2"] == first["held_out_kl_last"] < first["held_out_kl_phase_1"]
    )
    named = {row.get("phase") for row in rows(whole.folder)}
    assert named == {"phase 1 of 2", "phase 2 of 2"}
    accounts = json.loads((whole.folder / "data.json").read_text())["phases"]
    assert [account["rows"] for account in accounts] == sorted((a["rows"] for a in accounts), reverse=True)

    for kept in ("phase-1/checkpoints", "phase-1", "checkpoints"):  # killed in the first, between, and in the second
        killed = context(tmp_path / kept.replace("/", "-"), models / "base", models / "teacher")
        shutil.copytree(whole.folder / kept, killed.folder / kept)
        if kept == "checkpoints":
            shutil.copytree(whole.folder / "phase-1", killed.folder / "phase-1")
            newest = max((killed.folder / kept).iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
            (newest / "whole").unlink()
            (newest / "optimizer.pt").unlink()
        second = run(config, MIXTURES, killed)
        for name, weight in weights(whole.folder).items():
            assert torch.equal(weight, weights(killed.folder)[name]), (kept, name)
        same = ("held_out_kl_first", "held_out_kl_last", "loss_first", "loss_last", "tokens", "steps", "gap_closed")
        assert {name: first[name] for name in same} == {name: second[name] for name in same}


def test_lora_learns_from_a_teacher_too(models: Path, tmp_path: Path) -> None:
    where = context(tmp_path / "lora", models / "base", models / "teacher")
    figures = run(stage({"steps": 12, "lora": {"rank": 8}}), MIXTURES, where)
    assert figures["held_out_kl_last"] < figures["held_out_kl_first"] - 0.1
    assert weights(where.folder).keys() == load_model(models / "base").state_dict().keys()


def test_a_candidate_is_distilled_briefly(models: Path, tmp_path: Path, tokenizer: Any) -> None:
    prepared = prepare(MIXTURES["all"], chat_format("nemotron-nano-v2"), tokenizer, tmp_path / "data", None, 3)
    where = context(tmp_path / "candidate", models / "base", models / "base")
    train = MeasuredTraining(learning_rate=1e-2, steps=4, batch_size=2, dtype="float32")
    figures = distil_briefly(models / "base", models / "teacher", prepared, train, where, Pack(length=256))
    assert figures["held_out_kl_last"] < figures["held_out_kl_first"] and (where.folder / "model").is_dir()


def test_other_vocabularies_are_refused_by_name(models: Path, tmp_path: Path, tokenizer: Any) -> None:
    from tests.tiny import tied_llama, tiny_hybrid, token_ids

    save_model(tied_llama(700, **token_ids(tokenizer)), tokenizer, tmp_path / "wide")
    other = tiny_tokenizer("chatml")
    save_model(tiny_hybrid(len(tokenizer)), other, tmp_path / "other")
    assert vocabulary_fault(models / "base", models / "teacher") is None
    with pytest.raises(ConfigError, match=r"wide: its vocabulary of 700 \(tied embeddings\) tokens"):
        run(stage({"steps": 1}), MIXTURES, context(tmp_path / "a", models / "base", tmp_path / "wide"))
    with pytest.raises(ConfigError, match=r"another one: [\d,]+ entries are in one tokenizer only"):
        run(stage({"steps": 1}), MIXTURES, context(tmp_path / "b", models / "base", tmp_path / "other"))
    assert not (tmp_path / "a" / "checkpoints").exists()


FAULTS = [
    ({"teacher": "nobody"}, "teacher", "unknown stage `nobody`"),
    ({"teacher": "tuaght"}, "teacher", "did you mean `taught`"),
    ({"teacher": "base"}, "teacher", "`base` is the student too"),
    ({"teacher": "./nowhere"}, "teacher", "no such folder: ./nowhere"),
    ({"teacher": "builtin:miniature-bass"}, "teacher", "did you mean `builtin:miniature-base`"),
    (
        {"teacher": "nvidia/NVIDIA-Nemotron-Nano-9B-v2"},
        "teacher",
        "131,072 tokens in its vocabulary, the student 2,042",
    ),
    ({"temperature": 0}, "temperature", "greater than 0"),
    ({"top_k": 0}, "top_k", "greater than or equal to 1"),
    ({"cross_entropy": 1}, "cross_entropy", "less than 1"),
    ({"tokens": "every"}, "tokens", "'answers' or 'all'"),
    ({"teacher_dtype": "float16"}, "teacher_dtype", "'float32' or 'bfloat16'"),
    ({"phases": [{"length": 512, "steps": 3}], "pack": None}, "phases", "needs `pack`"),
    (
        {"phases": [{"length": 512, "steps": 3}], "train": {"learning_rate": 1e-3, "batch_size": 4, "steps": 2}},
        "phases",
        "neither steps nor epochs",
    ),
    ({"phases": [{"length": 512, "steps": 3, "batch_size": 3}]}, "phases.0.batch_size", "3 is not a multiple of 2"),
    ({"phases": [{"lenght": 512, "steps": 3}]}, "phases.0.lenght", "did you mean `length`"),
    ({"teacher_gpus": [1]}, "teacher_gpus", "trainer's 2 processes have GPUs 0 to 1"),
    ({"teacher_gpus": [2], "pack": {"length": 256, "sequence_parallel": 2}}, "teacher_gpus", "share a pack"),
]


@pytest.mark.parametrize(("change", "path", "message"), FAULTS)
def test_what_cannot_work_is_named_before_anything_runs(
    change: dict[str, Any], path: str, message: str, tmp_path: Path
) -> None:
    section = {"kind": "distill", "from": "base", "teacher": "taught", "data": "all", "pack": {"length": 256},
               "train": {"learning_rate": 1e-3, "batch_size": 4}, **change}  # fmt: skip
    taught = {"kind": "sft", "from": "base", "data": "all", "train": {"learning_rate": 1e-3}}
    recipe = {
        "name": "small", "seed": 1, "model": "builtin:miniature-base", "chat": "nemotron-nano-v2",
        "data": {"all": {"sources": {"miniature:math": 100}}}, "launch": {"kind": "local", "processes": 2},
        "stages": {"taught": taught, "distilled": section},
    }  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError) as error:
        load(str(tmp_path / "small.yaml"))
    assert len(error.value.problems) == 1
    assert f"stages.distilled.{path}: " in str(error.value) and message in str(error.value)


def test_a_teacher_from_elsewhere_is_part_of_what_the_stage_is_made_of(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "teacher", tmp_path / "expert")
    recipe = {
        "name": "small", "seed": 1, "model": str(models / "base"), "chat": "nemotron-nano-v2",
        "data": {"all": {"sources": {"miniature:math": 100}}},
        "stages": {"distilled": {
            "kind": "distill", "from": "base", "teacher": str(tmp_path / "expert"), "data": "all",
            "train": {"learning_rate": 1e-3},
        }},
    }  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load(str(tmp_path / "small.yaml"))
    (before,) = nodes(loaded, tmp_path)
    assert before.inputs == {"from": "base"}
    os.utime(tmp_path / "expert" / "model.safetensors", ns=(1, 1))
    (after,) = nodes(loaded, tmp_path)
    assert {name for name in before.parts if before.parts[name] != after.parts[name]} == {"inputs"}
