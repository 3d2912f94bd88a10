"""`nanoalign data generate` from end to end: settings, sources, real verifiers and simulators, a served model, rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nanoalign.cli import app
from nanoalign.data_recipes.selection import load


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", "generate", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def settings(folder: Path, endpoint: Any, **generate: Any) -> Path:
    served = {"url": endpoint.url, "model": "m", "most_requests": 500, "most_tokens": 10**7, "max_tokens": 99}
    path = folder / "make.yaml"
    path.write_text(json.dumps({"out": str(folder / "rows.jsonl"), "generate": {"served": served, **generate}}))
    return path


def rows(path: Path, *said: dict[str, Any]) -> str:
    path.write_text("\n".join(map(json.dumps, said)))
    return f"file:{path}"


def test_rejection_with_the_verifier_of_mathematics(endpoint: Any, tmp_path: Path) -> None:
    tasks = [
        {
            "messages": [{"role": "user", "content": f"{n} + {n} = ?"}, {"role": "assistant", "content": "?"}],
            "task": {"kind": "math", "answer": str(2 * n)},
            "licence": "MIT",
        }
        for n in range(5)
    ]

    def say(body: dict[str, Any]) -> dict[str, Any]:
        n = int(body["messages"][-1]["content"].split()[0])
        right = 2 * n if body["seed"] % 2 else 2 * n + 1
        return {"content": f"It is \\boxed{{{right if n != 3 else 0}}}.", "reasoning_content": f"{n} twice"}

    endpoint.say = say
    source = rows(tmp_path / "tasks.jsonl", *tasks)
    path = settings(tmp_path, endpoint, kind="rejection", source=source, samples=5, tries=2)
    code, printed = call(str(path))
    assert code == 0 and "4 samples of 5 tasks" in printed and "5 not kept: not accepted by the verifier" in printed
    made = load(f"file:{tmp_path / 'rows.jsonl'}").conversations
    assert {c.messages[1].content for c in made} == {f"It is \\boxed{{{2 * n}}}." for n in (0, 1, 2, 4)}
    assert all(c.messages[1].reasoning and c.licence == "MIT" and c.task for c in made)
    before = (tmp_path / "rows.jsonl").read_bytes()
    code, printed = call(str(path))
    assert code == 0 and "(0 requested now)" in printed and (tmp_path / "rows.jsonl").read_bytes() == before
    report = json.loads((tmp_path / "rows.report.json").read_text())
    assert (report["requests"], report["by_licence"]) == (10, {"MIT": 4})


def test_added_instructions_are_judged_by_their_verifier(endpoint: Any, tmp_path: Path) -> None:
    prompts = [{"messages": [{"role": "user", "content": f"Tell me of the number {n}."}]} for n in range(12)]
    endpoint.say = lambda body: {"content": "a fine number it is", "reasoning_content": "short"}
    source = rows(tmp_path / "prompts.jsonl", *prompts)
    path = settings(tmp_path, endpoint, kind="rejection", source=source, samples=12, tries=1, instructions=1)
    code, printed = call(str(path))
    assert code == 0, printed
    made = load(f"file:{tmp_path / 'rows.jsonl'}").conversations
    assert 0 < len(made) < 12 and all(c.task and c.task["kind"] == "instruction" for c in made)
    assert all(len(c.messages[0].content) > len("Tell me of the number 10.") for c in made)


def test_trajectories_in_the_miniature_workplace(endpoint: Any, tmp_path: Path) -> None:
    from nanoalign.data_recipes.workplace.office_tasks import tasks

    known = {task.request: task for task in tasks("train", 6000, 2023)[:6]}

    def say(body: dict[str, Any]) -> dict[str, Any]:
        task = known[body["messages"][0]["content"]]
        done = sum(message["role"] == "assistant" for message in body["messages"])
        if done == len(task.calls) or (body["seed"] == 0 and done):  # the first attempt at each stops too soon
            return {"content": task.closing}
        step = task.calls[done]
        function = {"name": step.name, "arguments": json.dumps(dict(step.arguments))}
        return {"content": "", "reasoning_content": "Next.", "tool_calls": [{"type": "function", "function": function}]}

    endpoint.say = say
    path = settings(tmp_path, endpoint, kind="trajectories", environment="miniature-workplace", samples=6, tries=2)
    code, printed = call(str(path))
    assert code == 0 and "6 samples of 6 tasks" in printed, printed
    made = load(f"file:{tmp_path / 'rows.jsonl'}").conversations
    assert len(made) == 6 and all(c.tools and c.domain == "tools" for c in made)
    assert all(any(m.tool_calls and m.reasoning == "Next." for m in c.messages) for c in made)


def test_long_context_and_translation(endpoint: Any, tmp_path: Path) -> None:
    source = rows(
        tmp_path / "texts.jsonl", *({"title": f"City {n}", "text": f"Founded in 1{n}00. " * 30} for n in range(5))
    )

    def say(body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][0]["content"]
        if "Reply with JSON" in text:
            return {"content": '{"question": "Which of the two is older?", "answer": "City 0"}'}
        if "German" in text:
            return {
                "content": "Die Stadt ist nicht so alt wie die andere, und das ist der Grund für die Antwort auf es."
            }
        return {"content": "Answer: City 0" if text.count("[Document") == 4 else "Answer: none"}

    endpoint.say = say
    path = settings(tmp_path, endpoint, kind="long_context", sources=[f"{source}#document"], samples=3, documents=4)
    code, printed = call(str(path))
    assert code == 0 and "3 samples of 3 tasks" in printed, printed
    made = load(f"file:{tmp_path / 'rows.jsonl'}").conversations
    assert all(c.messages[0].content.count("Founded") == 120 and c.domain == "long context" for c in made)
    (tmp_path / "rows.jsonl").rename(tmp_path / "english.jsonl")
    (tmp_path / "rows.replies.jsonl").unlink()
    path = settings(
        tmp_path, endpoint, kind="translation", source=f"file:{tmp_path / 'english.jsonl'}", samples=3, language="de"
    )
    code, printed = call(str(path))
    assert code == 0 and "tasks of kind exact are not translated" in printed, printed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "rejektion"}, "kind: unknown `rejektion`; did you mean `rejection`?"),
        ({"smaples": 3}, "generate.smaples: unknown key; did you mean `samples`?"),
        ({"samples": 0}, "generate.samples: expected greater than or equal to 1, got 0"),
        ({"samples": 50}, "has only 2 train samples"),
        ({"source": "file:none.jsonl"}, "no such file none.jsonl"),
        ({"source": "mt-bench", "split": "test"}, "mt_bench"),
    ],
)
def test_wrong_settings_are_told(change: dict[str, Any], said: str, endpoint: Any, tmp_path: Path) -> None:
    plain = {"messages": [{"role": "user", "content": "q"}], "task": {"kind": "exact", "answer": "a"}}
    asked = {"role": "user", "content": "r"}
    usual = {
        "kind": "rejection",
        "source": rows(tmp_path / "r.jsonl", plain, {**plain, "messages": [asked]}),
        "samples": 2,
    }
    (tmp_path / "chat").mkdir()
    rows(tmp_path / "chat" / "mt_bench_question.jsonl", {"question_id": 1, "category": "x", "turns": ["a", "b"]})
    if change.get("source") == "mt-bench":
        usual["samples"] = 1
    path = settings(tmp_path, endpoint, **{**usual, **change})
    code, printed = call(str(path), "--data-root", str(tmp_path))
    assert code == 2 and said in printed and not endpoint.bodies, printed
    assert not (tmp_path / "rows.jsonl").exists()
