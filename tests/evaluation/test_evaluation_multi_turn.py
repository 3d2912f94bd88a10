"""BFCL's multi-turn tasks on simulators of the package's layout, and on the package itself where it is mirrored."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoalign.common.errors import DataError
from nanoalign.data_recipes.chat import chat_format
from nanoalign.data_recipes.conversation import Answer, ToolCall
from nanoalign.data_recipes.workplace.bfcl import STEPS, VERSION, World, load_classes, verdict
from nanoalign.evaluation.config import Suite
from nanoalign.evaluation.records import Keeping, Kept, read_records
from nanoalign.evaluation.suites import Job, evaluate_all, load_suite, suite_reward
from nanoalign.evaluation.tasks import Tasks
from nanoalign.models.loading import load_tokenizer, resolve
from nanoalign.rollouts.base import Completion, Mode, Request, Sampling
from nanoalign.rollouts.config import Rollouts
from nanoalign.rollouts.environments.bfcl import MORE_FUNCTIONS, turns_of

CHAT = chat_format("nemotron-nano-v2")
SYSTEMS = """
class TicketAPI:
    def __init__(self): self.open, self._calls = [], 0
    def _load_scenario(self, scenario, long_context=False): self.open = [*scenario["open"], *["filler"] * long_context]
    def create(self, title):
        self._calls += 1
        self.open.append(title)
        return {"id": len(self.open)}
    def listed(self): return {"open": self.open}
    def close(self, title): self.open.remove(title)


class MathAPI:
    def power(self, base, exponent): return {"result": base**exponent}
"""
DESCRIBED = {
    "ticket_api": [("create", {"title": "string"}), ("listed", {}), ("close", {"title": "string"})],
    "math_api": [("power", {"base": "float", "exponent": "float"})],
}
ROWS = [
    {"id": "multi_turn_base_0", "involved_classes": ["TicketAPI", "MathAPI"],
     "initial_config": {"TicketAPI": {"open": []}},
     "question": [[{"role": "user", "content": "Open a ticket: printer."}],
                  [{"role": "user", "content": "Two to the tenth?"}]]},
    {"id": "multi_turn_miss_func_0", "involved_classes": ["TicketAPI"],
     "initial_config": {"TicketAPI": {"open": ["a"]}},
     "question": [[{"role": "user", "content": "Close a."}], []], "missed_function": {"1": ["close"]}},
]  # fmt: skip
GOLD = [[["create('printer')"], ["power(base=2, exponent=10)"]], [[], ["close(title='a')"]]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data root with simulators and tasks in bfcl-eval's layout."""
    root = tmp_path_factory.mktemp("data")
    package = root / "bfcl-eval" / "bfcl_eval"
    for folder in ("constants", "data/possible_answer", "data/multi_turn_func_doc"):
        (package / folder).mkdir(parents=True)
    mapping = dict.fromkeys(("TicketAPI", "MathAPI"), "bfcl_eval.systems")
    (package / "constants" / "executable_backend_config.py").write_text(f"CLASS_FILE_PATH_MAPPING = {mapping!r}")
    (package / "systems.py").write_text(SYSTEMS)
    for name, functions in DESCRIBED.items():
        described = [
            {"name": each, "description": each, "parameters": {"type": "dict", "properties": {
                key: {"type": kind, "description": key} for key, kind in parameters.items()
            }, "required": list(parameters)}} for each, parameters in functions
        ]  # fmt: skip
        _write(package / "data" / "multi_turn_func_doc" / f"{name}.json", described)
    for row, gold in zip(ROWS, GOLD):
        name = f"BFCL_v4_{str(row['id']).removesuffix('_0')}.json"
        _write(package / "data" / name, [row])
        _write(package / "data" / "possible_answer" / name, [{"id": row["id"], "ground_truth": gold}])
    before = {name for name in sys.modules if name.startswith("bfcl_eval")}
    assert not before
    yield root
    for name in [name for name in sys.modules if name.startswith("bfcl_eval")]:
        del sys.modules[name]


def _write(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def tasks(root: Path) -> Tasks:
    return load_suite("bfcl-multi-turn", Suite(benchmark="bfcl-multi-turn"), {}, root, 0)


def calls(*each: tuple[str, dict[str, Any]]) -> Answer:
    return Answer("", tool_calls=tuple(ToolCall(*call) for call in each))


PRINTER, POWER, LISTED = ("create", {"title": "printer"}), ("power", {"base": 2, "exponent": 10}), ("listed", {})
DONE = Answer("Done.")


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([calls(PRINTER), DONE, calls(POWER), DONE], ""),
        ([calls(LISTED, PRINTER), calls(POWER), DONE, calls(LISTED), DONE], ""),  # earlier results count
        ([calls(PRINTER), DONE, DONE], "no call in request 2"),
        ([calls(("create", {"title": "scanner"})), DONE, calls(POWER), DONE], "another state after request 1"),
        ([calls(PRINTER, PRINTER), DONE, calls(POWER), DONE], "another state after request 1"),
        ([calls(PRINTER), DONE, calls(LISTED), DONE], "a result is missing in request 2"),
        ([calls(PRINTER), DONE], "ended in request 2 of 2"),
        ([calls(LISTED)] * (STEPS + 1), "ended in request 1 of 2"),
    ],
)
def test_state_and_results_are_judged_after_each_request(tasks: Tasks, answers: list[Answer], why: str) -> None:
    assert tasks.environment is not None
    episode: Any = tasks.environment.start(tasks.played[0])
    for answer in answers:
        said = episode.step(answer)
    assert episode.why() == why and episode.success() is (why == "")
    assert episode.over is (said == () or len(answers) > STEPS)


def test_functions_that_come_late(tasks: Tasks) -> None:
    assert tasks.environment is not None
    episode: Any = tasks.environment.start(tasks.played[1])
    assert [tool["name"] for tool in episode.tools] == ["create", "listed"]
    [said] = episode.step(Answer("I have no function for that."))
    assert said.content == MORE_FUNCTIONS and [tool["name"] for tool in episode.tools] == ["create", "listed", "close"]
    episode.step(calls(("close", {"title": "a"})))
    assert episode.step(DONE) == () and episode.success()


def test_without_the_package_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bfcl_eval", raising=False)
    monkeypatch.delenv("NANOALIGN_DATA", raising=False)
    with pytest.raises(DataError, match=rf"pip install --no-deps --target {tmp_path}/bfcl-eval bfcl-eval=={VERSION}"):
        load_classes(["TicketAPI"], tmp_path)
    with pytest.raises(DataError, match=r"mirror it below .*pip install --no-deps --target .*/bfcl-eval bfcl-eval"):
        load_suite("bfcl-multi-turn", Suite(benchmark="bfcl-multi-turn"), {}, tmp_path, 0)


PLAIN = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.sampled_from(["", "a", "2\n"])
JSON = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.sampled_from("xy"), PLAIN)


@given(st.sampled_from(["create", "close", "power", "_load_scenario", "__init__", ""]), st.dictionaries(
    st.sampled_from(["title", "base", "exponent", "self", "class"]), JSON))  # fmt: skip
def test_no_call_raises_or_takes_for_ever(root: Path, name: str, arguments: dict[str, Any]) -> None:
    task = {"classes": ["TicketAPI", "MathAPI"], "initial_config": {"TicketAPI": {"open": []}}, "expected": [[], []]}
    assert isinstance(World(task, root).call(name, arguments), str)
    wanted = [{"name": name, "arguments": arguments}]
    assert verdict({**task, "expected": [wanted]}, [[[ToolCall(name, arguments)]]], root) in ("", STATE)


STATE = "another state after request 1"
"""NaN is equal to nothing."""


def test_huge_powers_are_refused(tasks: Tasks, root: Path) -> None:
    world = World(tasks.played[0].data, root)
    assert world.call("power", {"base": 9, "exponent": 10**9}) == "Error during execution: exponent is too large"


class Scripted:
    """Answers a prompt by what its last user said: a call, and after the call's result a text."""

    lost, max_length = 0, 4096

    def __init__(self, tokenizer: Any, stop_after: int | None = None) -> None:
        self.tokenizer, self.asked, self.left = tokenizer, 0, stop_after

    def generate(self, requests: Sequence[Request], done: Any = None) -> list[Completion]:
        completions = []
        for place, request in enumerate(requests):
            if self.left == self.asked:
                raise KeyboardInterrupt
            self.asked += 1
            text = self.tokenizer.decode(request.prompt_ids)
            script = {"printer.": PRINTER, "tenth?": POWER, "now?": ("close", {"title": "a"})}
            called = next((call for word, call in script.items() if word in text[-90:]), None)
            said = "Done."
            if called is not None:
                said = f"<TOOLCALL>{json.dumps([{'name': called[0], 'arguments': called[1]}])}</TOOLCALL>"
            ids = self.tokenizer.encode(said + CHAT.stop[0], add_special_tokens=False)
            completions.append(Completion(tuple(ids), (), (False,) * len(ids), "stop"))
            if done is not None:
                done(place, completions[-1])
        return completions


def test_a_stopped_suite_goes_on_inside_its_episodes(tasks: Tasks, root: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(resolve("builtin:miniature-base"))
    rollouts = Rollouts.model_validate({"max_tokens": 64, "temperature": 0.0})
    job = Job(tasks, Mode(False), suite_reward(tasks.config, {}, "cpu"), rollouts)
    with pytest.raises(KeyboardInterrupt):
        evaluate_all(Scripted(tokenizer, 5), CHAT, tokenizer, [job], folder=tmp_path)  # type: ignore[arg-type]
    rest = Scripted(tokenizer)
    [result] = evaluate_all(rest, CHAT, tokenizer, [job], folder=tmp_path)  # type: ignore[arg-type]
    assert rest.asked == 2  # of seven answers, four to the first task and three to the second
    assert result.scores == (1.0, 1.0) and result.more["category_mean"].value == 1.0
    rows = read_records(tmp_path / "bfcl-multi-turn.no_think.jsonl")
    assert [(row["domain"], row["score"], row["turns"]) for row in rows] == [
        ("multi_turn_base", 1.0, 4), ("multi_turn_miss_func", 1.0, 3)
    ]  # fmt: skip
    roles = [each["role"] for each in rows[1]["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "tool", "assistant"]
    assert verdict(tasks.played[0].data, turns_of(rows[0]["messages"]), root) == ""


def test_an_engine_that_takes_questions_at_any_time_keeps_them_too(tmp_path: Path) -> None:
    class Submitting:
        lost, max_length, asked = 0, None, 0

        def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
            self.asked += len(requests)
            answer: Future[Completion] = Future()
            answer.set_result(Completion((7,), (), (False,), "stop"))
            return [answer for _ in requests]

    engine, request = Submitting(), Request((1, 2), Sampling(seed=0, max_tokens=4, temperature=0.0))
    for _ in range(2):
        kept = Kept(tmp_path / "kept.jsonl")
        [answer] = Keeping(engine, kept).submit([request])  # type: ignore[arg-type]
        assert answer.result().token_ids == (7,)
        kept.close()
    assert engine.asked == 1


MIRRORED = Path(os.environ.get("NANOALIGN_DATA", "../shared/data")) / "bfcl-eval"


@pytest.mark.skipif(not MIRRORED.is_dir(), reason=f"bfcl-eval is not in {MIRRORED}")
def test_the_packages_own_reference_calls_are_right() -> None:
    tasks = load_suite("m", Suite(benchmark="bfcl-multi-turn", samples=40), {}, MIRRORED.parent, 0)
    for each in tasks.played:
        gold = [[[ToolCall(call["name"], call["arguments"]) for call in turn]] for turn in each.data["expected"]]
        assert verdict(each.data, gold, MIRRORED.parent) == ""
