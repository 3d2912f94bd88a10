"""A user's own rewards: TRL's examples as they are, our samples, worker processes, and what goes wrong with a name."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.errors import ConfigError
from nanoalign.common.user_code import find, load
from nanoalign.data_recipes.conversation import Answer, Message
from nanoalign.reward import RewardError, Sample, make_reward
from nanoalign.reward.base import FLOOR, Progress, Score
from nanoalign.reward.config import OwnReward, short_names
from nanoalign.reward.own.call import Failure, Function
from nanoalign.reward.own.signature import of_object
from nanoalign.reward.own.source import signature


def sample(text: str, thought: str = "", **task: Any) -> Sample:
    ids = tuple(range(len(text.split())))
    return Sample((Message("user", "What is 2+2?"),), Answer(text, thought), task, completion_ids=ids)


@pytest.fixture
def own(tmp_path: Path):
    """Scores samples with a function of this source."""

    def score(source: str, samples: Sequence[Sample], name: str = "reward_func", **section: Any) -> list[float]:
        (tmp_path / "mine.py").write_text(source)
        key = f"{tmp_path / 'mine.py'}:{name}"
        return make_reward({key: {"weight": 1.0, **section}}).components(samples)[name]

    return score


TRL = {
    "tokens": (
        "def reward_func(completion_ids, **kwargs):\n    return [float(len(ids)) for ids in completion_ids]\n",
        [sample("one two"), sample("one two three")], [2.0, 3.0]),
    "tokens, as its documentation spells them": (
        "def reward_func(completions_ids, **kwargs):\n    return [float(len(ids)) for ids in completions_ids]\n",
        [sample("one two")], [2.0]),
    "characters": (
        "def reward_func(completions, **kwargs):\n    return [float(len(completion)) for completion in completions]\n",
        [sample(" blue."), sample("")], [6.0, 0.0]),
    "a format, of messages": (
        '''import re

def reward_func(completions, **kwargs):
    """Reward function that checks if the completion has a specific format."""
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]
''',
        [sample("<answer>12</answer>", thought="3 times 4"), sample("<answer>12</answer>"), sample("12", thought="a")],
        [1.0, 0.0, 0.0]),
    "a reference": (
        r'''import re

def reward_func(completions, ground_truth, **kwargs):
    # Regular expression to capture content inside \boxed{}
    matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    # Reward 1 if the content is the same as the ground truth, 0 otherwise
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth)]
''',
        [sample(r"It is \boxed{2}.", kind="math", answer="2"), sample(r"\boxed{6}", kind="math", answer="5")],
        [1.0, 0.0]),
    "a state, an asynchronous one": (
        '''import asyncio

async def reward_func(prompts, completions, trainer_state, **kwargs):
    await asyncio.sleep(0.01)
    return [1.0 + trainer_state.global_step if completion else 0.0 for completion in completions]
''',
        [sample("a"), sample("")], [1.0, 0.0]),
    "a callable object": (
        '''class Cosine:
    __name__ = "cosine"
    def __init__(self, most): self.most = most
    def __call__(self, completions: list[list[dict[str, str]]], completion_ids: list[list[int]], **kwargs):
        return [len(ids) / self.most for ids, _ in zip(completion_ids, [c[0]["content"] for c in completions])]

reward_func = Cosine(4)
''',
        [sample("one two")], [0.5]),
    "TRL's own function": (
        "from trl.rewards.format_rewards import think_format_reward as reward_func\n",
        [sample("So.", thought="I think."), sample("So.")], [1.0, 0.0]),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRL)
@pytest.mark.parametrize("workers", [0, 1])
def test_trls_examples_run_as_they_are(own, kind: str, workers: int) -> None:
    source, samples, scores = TRL[kind]
    assert own(source, samples, workers=workers) == scores


def test_trls_tasks_of_several_kinds(tmp_path: Path) -> None:
    """None means: does not apply. It adds nothing, and is counted."""
    (tmp_path / "tasks.py").write_text("""
def math_reward_func(prompts, completions, task, **kwargs):
    rewards = []
    for prompt, completion, t in zip(prompts, completions, task):
        if t == "math":
            # Calculate math-specific reward
            rewards.append(1.0 if completion == "4" else -1.0)
        else:
            # Return None for non-math tasks
            rewards.append(None)
    return rewards

def coding_reward_func(prompts, completions, task, **kwargs):
    return [(0.5 if "def" in c else -1.0) if t == "coding" else None for c, t in zip(completions, task)]
""")
    samples = [sample("4", kind="math"), sample("def f(): ...", kind="coding"), sample("5", kind="math")]
    names = ("math_reward_func", "coding_reward_func")
    reward = make_reward({f"{tmp_path}/tasks.py:{name}": 1.0 for name in names})
    scores = reward.score(samples)
    assert scores == [1.0, 0.5, -1.0]
    assert [score.reason for score in scores if isinstance(score, Score)] == [
        "coding_reward_func: does not apply", "math_reward_func: does not apply", "coding_reward_func: does not apply",
    ]  # fmt: skip


def test_trl_calls_a_function_with_the_same_arguments(tmp_path: Path) -> None:
    """TRL's own caller and ours, on one conversational batch: the same keywords, prompts and completions."""
    from types import SimpleNamespace

    import torch
    from trl import GRPOTrainer

    (tmp_path / "noting.py").write_text(
        "seen = []\n"
        "def note(completions: list[list[dict]], **kwargs):\n"
        "    seen.append({'completions': completions, **kwargs})\n"
        "    return [0.0] * len(completions)\n"
    )
    function = Function(f"{tmp_path}/noting.py:note", "note", OwnReward(weight=1.0))
    samples = [sample("4", kind="math", answer="4"), sample("five", kind="math", answer="5")]
    function.scores(samples, Progress(3, 9), ())
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=True), reward_funcs=[function.code],
        reward_processing_classes=[None], reward_func_names=["note"], state=Progress(3, 9), environments=None,
        _log_completion_extra=None, _log_metric=None, args=SimpleNamespace(report_to=[]),
    )  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": "What is 2+2?"}], **each.task} for each in samples]
    completions = [[{"role": "assistant", "content": each.answer.content}] for each in samples]
    gather, calculate = "trl.trainer.grpo_trainer.gather", GRPOTrainer._calculate_rewards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, lambda tensor: tensor)
        scores = calculate(
            trainer, rows, [row["prompt"] for row in rows], completions, [list(s.completion_ids) for s in samples]
        )
    assert torch.equal(scores, torch.zeros(2, 1))
    ours, theirs = function.code.__globals__["seen"]
    added = {"completions_ids", "ground_truth", "solution", "task"}
    assert set(ours) - set(theirs) == added and not set(theirs) - set(ours)
    loggers = {"log_extra", "log_metric"}
    assert all(ours[name] == theirs[name] for name in theirs if name not in loggers)


def test_our_samples_with_parameters_in_process_and_in_workers(own) -> None:
    source = (
        "def brevity(samples, target=4, *, floor):\n"
        "    return [max(floor, min(1.0, target / max(1, len(s.completion_ids)))) for s in samples]\n"
    )
    samples = [sample("a " * n) for n in range(1, 12)]
    here = own(source, samples, "brevity", target=2, floor=0.25)
    assert here[:3] == [1.0, 1.0, pytest.approx(2 / 3)] and min(here) == 0.25
    assert own(source, samples, "brevity", target=2, floor=0.25, workers=2) == here


def test_columns_of_the_whole_data_are_known_before_a_batch(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def level_of(completions, level):\n    return [each or 0.0 for each in level]\n")
    reward = make_reward({f"{tmp_path}/mine.py:level_of": 1.0})
    with pytest.raises(
        RewardError, match="its parameter `level` is no key of the samples' tasks; did you mean `levels`"
    ):
        reward.know([{"kind": "a", "levels": 1}])
    reward.know([{"kind": "a"}, {"kind": "b", "level": 2}])
    assert reward.score([sample("x", kind="a")]) == [0.0]  # this batch has none


ANY = st.one_of(
    st.none(), st.floats(), st.integers(), st.text(max_size=3), st.binary(max_size=3), st.just(10**400),
    st.complex_numbers(), st.lists(st.floats(), max_size=2),
)  # fmt: skip


@given(st.lists(ANY, max_size=4))
def test_whatever_a_function_returns_is_a_score_or_a_failure(values: list[Any]) -> None:
    function = Function.__new__(Function)
    function.name, function.file = "any", Path("any.py")
    read = function.read(values, len(values))
    assert all(value is None or isinstance(value, Failure) or math.isfinite(value) for value in read)
    assert [value is None for value in read] == [value is None for value in values]


def test_a_generator_is_read_like_a_list(own) -> None:
    source = "def reward_func(samples):\n    for each in samples:\n        yield 1 / len(each.answer.content)\n"
    assert own(source, [sample("ab"), sample("")], on_error="count") == [0.5, 0.0]


def test_async_functions_are_awaited_together_and_beside_ours(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import asyncio\nbarrier = None\n"
        "async def meet(samples):\n"
        "    global barrier\n    barrier = barrier or asyncio.Barrier(1)\n    await barrier.wait()\n"
        "    return [1.0 for _ in samples]\n"
        "async def first(samples):\n    await asyncio.sleep(0.4)\n    return [1.0 for _ in samples]\n"
        "async def second(samples):\n    await asyncio.sleep(0.4)\n    return [2.0 for _ in samples]\n"
    )
    reward = make_reward({f"{tmp_path}/slow.py:{name}": 1.0 for name in ("first", "second", "meet")} | {"format": 1.0})
    started = time.monotonic()
    for _ in range(2):  # one loop for all batches
        columns = reward.components([sample("a")])
    assert columns == {"first": [1.0], "second": [2.0], "meet": [1.0], "format": [1.0]}
    assert time.monotonic() - started < 1.5  # not 1.6 one after the other


GOOD, BAD = sample("good"), sample("bad")
RAISES = """def reward_func(samples):
    return [score(s) for s in samples]

def score(sample):
    if sample.answer.content == "bad":
        raise ZeroDivisionError("no such thing")
    return 1.0
"""
FAILURES = {
    "raises": (
        RAISES,
        {},
        r"raised ZeroDivisionError: no such thing \(.*mine\.py:6\), for the prompt 'What is 2\+2\?' and "
        "the answer 'bad'",
        "raised ZeroDivisionError",
    ),
    "raises in a worker": (
        RAISES,
        {"workers": 2},
        r"raised ZeroDivisionError: no such thing \(.*mine\.py:6\), .* 'bad'",
        "raised ZeroDivisionError",
    ),
    "raises, awaited": (
        RAISES.replace("def reward", "async def reward"),
        {},
        r"\(.*mine\.py:6\), .* 'bad'",
        "raised ZeroDivisionError",
    ),
    "exits": (
        RAISES.replace('ZeroDivisionError("no such thing")', "SystemExit(3)"),
        {},
        r"raised SystemExit: 3 .*'bad'",
        "raised SystemExit",
    ),
    "nan": (
        "def reward_func(samples):\n    return [float('nan') if s.answer.content == 'bad' else 1.0 for s in samples]",
        {},
        r"gave nan \(.*mine.py\), .*'bad'",
        "gave nan",
    ),
    "infinite": (
        "def reward_func(completions):\n    return [-float('inf') if c == 'bad' else 1.0 for c in completions]",
        {},
        "gave -inf .*'bad'",
        "gave -inf",
    ),
    "no number": (
        "def reward_func(samples):\n    return ['0.5' if s.answer.content == 'bad' else 1 for s in samples]",
        {},
        r"gave '0.5', not a number .*'bad'",
        "gave no number",
    ),
    "hangs": (
        "import time\ndef reward_func(samples):\n    [time.sleep(99) for s in samples if s.answer.content == 'bad']\n"
        "    return [1.0]",
        {"deadline_s": 1.0},
        "took more than 1 s, .*'bad'",
        "over the time limit",
    ),
    "text for messages": (
        "def get(c):\n    return c[0]['content']\ndef reward_func(completions, **kwargs):\n"
        "    return [1.0 if c == 'good' else get(c) for c in completions]",
        {},
        "mine.py:2\\); it was given text: `completions: messages` in the recipe",
        "raised TypeError",
    ),
    "ends its process": (
        "import os\ndef reward_func(samples):\n    [os._exit(1) for s in samples if s.answer.content == "
        "'bad']\n    return [1.0]",
        {"workers": 1},
        "ended its process .*'bad'",
        "its process ended",
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_names_file_line_and_sample_or_is_counted(own, kind: str) -> None:
    source, section, message, reason = FAILURES[kind]
    with pytest.raises(RewardError, match=message):
        own(source, [GOOD, BAD], **section)
    good, bad = own(source, [GOOD, BAD], on_error="count", **section)
    assert (good, bad) == (1.0, 0.0) and bad.reason == reason and good.reason == ""


def test_where_a_slow_function_in_this_process_is(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "mine.py").write_text("import time\ndef slow(samples):\n    time.sleep(0.5)\n    return [1.0]\n")
    monkeypatch.setattr("nanoalign.reward.own.watch.SLOW_S", 0.1)
    assert make_reward({f"{tmp_path}/mine.py:slow": 1.0}).components([GOOD]) == {"slow": [1.0]}
    assert "mine.py:3; nothing ends a function in the stage's own process" in capsys.readouterr().err


def test_a_late_batch_of_an_async_function_is_an_error_or_counted(own) -> None:
    source = "import asyncio\nasync def reward_func(samples):\n    await asyncio.sleep(99)\n"
    with pytest.raises(RewardError, match=r"took more than 0\.1 s for 2 samples"):
        own(source, [GOOD, BAD], deadline_s=0.1)
    scores = own(source, [GOOD, BAD], deadline_s=0.1, on_error="count")
    assert [score.reason for score in scores] == ["over the time limit"] * 2


def test_no_failure_is_better_than_an_answer(tmp_path: Path) -> None:
    """Where scores may be negative, neither an answer that breaks the function nor a malformed one escapes them."""
    (tmp_path / "negative.py").write_text(
        "def penalty(completions):\n    return [-float(len(c)) / (c != 'break') for c in completions]\n"
    )
    malformed = Sample((), Answer("<|im_end|>", faults=("held a special token",)))
    reward = make_reward({f"{tmp_path}/negative.py:penalty": {"weight": 1.0, "on_error": "count"}})
    assert reward.components([sample("abc"), sample("break"), malformed])["penalty"] == [-3.0, -3.0, -3.0]
    assert reward.components([malformed])["penalty"] == [FLOOR]


WRONG = {
    "too few scores": ("def reward_func(samples):\n    return [1.0]", RewardError, "gave 1 scores for 2 samples"),
    "one number": (
        "def reward_func(samples):\n    return 1.0",
        RewardError,
        "returned float 1.0, not a list of scores",
    ),
    "one number, as an array": (
        "import numpy\ndef reward_func(samples):\n    return numpy.float32(1).reshape(())",
        RewardError,
        r"returned \w+ .*1.0.*, not a list of scores",
    ),
    "nothing": ("def reward_func(samples):\n    pass", RewardError, "returned NoneType None, not a list"),
    "a text": ("def reward_func(samples):\n    return '10'", RewardError, "returned str '10', not a list"),
    "a coroutine": (
        "async def f(s):\n    return [1.0]\ndef reward_func(samples):\n    return f(samples)",
        RewardError,
        "returned a coroutine: declare it with `async def`",
    ),
    "an unknown column": (
        "def reward_func(completions, refernce):\n    return [0.0, 0.0]",
        RewardError,
        "its parameter `refernce` is no key of the samples' tasks; did you mean `reference`",
    ),
    "only together": (
        "def reward_func(samples):\n    assert len(samples) < 2\n    return [1.0]",
        RewardError,
        "for 2 samples together and for none alone",
    ),
    "raises on import": ("1/0\ndef reward_func(samples): ...", ConfigError, "mine.py:1: cannot be imported: ZeroDiv"),
    "imports what is not there": (
        "def f():\n    import nothing_here\nf()\ndef reward_func(samples): ...",
        ConfigError,
        "mine.py:2: cannot be imported: ModuleNotFoundError: No module named 'nothing_here'",
    ),
    "made, and no function": ("reward_func = max(1, 2)", ConfigError, "`reward_func` in .* is not a function"),
    "made, and a class": ("reward_func = type('A', (), {})", ConfigError, "`reward_func` in .* is a class"),
    "made, with a wrong signature": ("reward_func = lambda x: x", ConfigError, "takes neither `samples` nor"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_no_samples_fault_ends_the_run_whatever_the_recipe_says(own, kind: str, workers: int) -> None:
    source, error, message = WRONG[kind]
    if workers and kind in ("too few scores", "only together"):
        pytest.skip("a worker is asked for one sample at a time")
    samples = [sample("a", reference="b"), sample("c", reference="d")]
    with pytest.raises(error, match=message if not workers else message.replace("2 samples", "1 samples")):
        own(source, samples, on_error="count", workers=workers)


def test_a_function_read_is_the_function_called(tmp_path: Path) -> None:
    """What the plan reads from a file and what the stage sees of the function agree."""
    file = tmp_path / "several.py"
    file.write_text("""
def a(samples, target=200): ...
def b(completions: "list[str]", *, ground_truth, **kwargs): ...
async def c(prompts, completions, weight_of=None, **columns): return [x[0]["content"] for x in completions]
def d(completions: list[list[dict[str, str]]], solution, log_extra=None, **kwargs): ...
def e(x, /, samples): ...
def f(*, samples, must, may=1): return [s.get("content") for s in samples]
""")
    for name in "abcdef":
        assert signature(f"{file}:{name}") == of_object(load(find(f"{file}:{name}"))), name


def test_short_names_are_unique() -> None:
    assert short_names({"math": 1, "a/mine.py:brevity": 1, "pkg.rewards:right": 1}) == {
        "math": "math", "a/mine.py:brevity": "brevity", "pkg.rewards:right": "right"}  # fmt: skip
    assert list(short_names({"a.py:f": 1, "b.py:f": 1, "c.py:math": 1}).values()) == ["a.f", "b.f", "c.math"]
    assert list(short_names({"x/a.py:f": 1, "y/a.py:f": 1, "x.a:f": 1}).values()) == ["x/a.py:f", "y/a.py:f", "x.a:f"]


@given(
    st.sets(st.tuples(st.sampled_from(["a.py", "x/a.py", "a", "x.a", "math.py"]), st.sampled_from(["f", "g", "math"])))
)
def test_no_two_rewards_share_a_name(keys: set[tuple[str, str]]) -> None:
    names = short_names({f"{where}:{name}": 1.0 for where, name in keys} | dict.fromkeys(("math", "format"), 1.0))
    assert len(set(names.values())) == len(names)
