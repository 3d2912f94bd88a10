"""Our verdicts beside the reference scorers', on stored completions of models and on gold answers in many shapes.

Run: ``python benchmarks/agreement.py --reference FOLDER --data-root DATA [--records FOLDER ...] [--json FILE]``.
``--reference`` holds the packages of agreement_references.py, with BFCL's tasks; ``--records`` are folders of
``nanoalign evaluate``.
``eval.*_agreement`` is the share of answers with the same verdict; every difference is listed in ``--differences``.
``eval.math_unusual_agreement``: of boxes on which scorers have conventions (``24.``, ``24\\%``, ``\\approx 24``).
"""

import argparse
import json
import platform
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import agreement_cases as cases
import agreement_multi_turn
import agreement_references as references

from nanoalign.common.files import write_json
from nanoalign.common.intervals import proportion
from nanoalign.data_recipes.adapters import tasks as adapters
from nanoalign.data_recipes.conversation import Answer, ToolCall
from nanoalign.evaluation.benchmark_tasks import BFCL_CATEGORIES
from nanoalign.evaluation.records import read_records
from nanoalign.reward.base import Sample
from nanoalign.reward.bfcl import score_bfcl
from nanoalign.reward.instructions.checkers import follows
from nanoalign.reward.mathematics import MathVerifier


@dataclass
class Tally:
    """Same and other verdicts of one scorer."""

    name: str
    same: int = 0
    right: int = 0
    """By the reference."""
    by_origin: Counter[tuple[str, bool]] = field(default_factory=Counter)
    differences: list[dict[str, Any]] = field(default_factory=list)

    def add(self, origin: str, ours: bool, theirs: bool, **about: Any) -> None:
        """One answer; ``origin`` is ``model`` or ``made``."""
        self.same += ours == theirs
        self.right += theirs
        self.by_origin[origin, ours == theirs] += 1
        if ours != theirs:
            self.differences.append({"scorer": self.name, "origin": origin, "ours": ours, "theirs": theirs, **about})

    @property
    def n(self) -> int:
        return self.by_origin.total()

    def figures(self) -> dict[str, Any]:
        """The agreement with its interval, and of what it is made."""
        parts = {
            f"{self.name}.{origin}": proportion(
                self.by_origin[origin, True], self.by_origin[origin, True] + self.by_origin[origin, False]
            ).as_dict()
            for origin in sorted({origin for origin, _ in self.by_origin})
        }
        return {
            self.name: proportion(self.same, self.n).as_dict(), **parts,
            f"{self.name}.right_by_reference": proportion(self.right, self.n).as_dict(),
        }  # fmt: skip


def written(folders: Iterable[Path], suite: str) -> list[dict[str, Any]]:
    """The records of models' answers to a suite."""
    return [
        row for folder in folders for path in sorted(folder.glob(f"records/*/{suite}.*.jsonl"))
        if not path.stem.endswith("completions") for row in read_records(path)
    ]  # fmt: skip


def ifeval(data_root: Path, records: list[Path], tally: Callable[[str], Tally], limit: int | None) -> None:
    """Every prompt with every shape of a person's text, and the models' answers; prompt by prompt and instruction by
    instruction, strictly and loosely."""
    reference, draw = references.IFEval(), random.Random(0)
    rows = {
        str(row["key"]): row
        for row in map(json.loads, (data_root / "ifeval" / "input_data.jsonl").read_text(encoding="utf-8").splitlines())
    }
    texts = human_texts(data_root)
    answers = [("model", row["task"], "as it is", row["answer"]) for row in written(records, "ifeval")]
    answers += [
        ("made", key, shape, text)
        for key, row in list(rows.items())[:limit]
        for shape, text in cases.instruction_shapes(row, draw.choice(texts), draw)
    ]
    for origin, key, shape, text in answers:
        row = rows[key]
        [adapted] = adapters.ifeval(row)
        theirs = reference.verdicts(row, text)
        for way, loose in (("strict", False), ("loose", True)):
            ours = [follows(text, each["id"], each["kwargs"], loose=loose) for each in adapted["task"]["instructions"]]
            name = "eval.ifeval_agreement" if way == "strict" else "eval.ifeval_loose_agreement"
            unlike = [i for i, a, b in zip(row["instruction_id_list"], ours, theirs[way]) if a != b]
            tally(name).add(origin, all(ours), all(theirs[way]), task=key, shape=shape, instructions=unlike, text=text)
            for i, a, b in zip(row["instruction_id_list"], ours, theirs[way]):
                tally(f"eval.ifeval_{way}_instruction_agreement").add(origin, a, b, task=key, shape=shape,
                                                                      instructions=[i], text=text)  # fmt: skip


def human_texts(data_root: Path) -> list[str]:
    """What people and GPT-4 wrote."""
    from verifiers import answers

    return sorted({text for text in answers(data_root) if text.strip()})


def mathematics(data_root: Path, records: list[Path], tally: Callable[[str], Tally], limit: int | None) -> None:
    """MATH's answers against math-verify."""
    golds = json.loads((data_root / "math" / "math_train_answers.json").read_text(encoding="utf-8"))
    by_problem = {row["problem"].strip(): row["answer"] for row in golds}
    drawn = [row["answer"] for row in random.Random(0).sample(golds, limit or 700) if row["answer"].strip()]
    answers = _math_answers(drawn, written(records, "math500"), by_problem)
    for file in sorted((data_root / "reasoning").glob("distil_sample_*.json")):
        for row in json.loads(file.read_text(encoding="utf-8")):
            answers.append(("model", "a teacher's", str(row["gtruth_answer"]), row["message_content"]))
    reference = references.Mathematics().math_verify
    _math(answers, reference, tally("eval.math_agreement"))
    draw = random.Random(4)
    unusual = [("made", shape, gold, text) for gold in drawn for shape, text in cases.unusual_boxes(gold, draw)]
    _math(unusual, reference, tally("eval.math_unusual_agreement"))


def aime(data_root: Path, records: list[Path], tally: Callable[[str], Tally], limit: int | None) -> None:
    """AIME's answers against math-verify, and against the string rule of lm-eval's AIME."""
    rows = json.loads((data_root / "math" / "aime_1983_2023.json").read_text(encoding="utf-8"))
    by_problem = {row["problem"].strip(): str(row["answer"]) for row in rows}
    drawn = [str(row["answer"]) for row in random.Random(1).sample(rows, limit or 400)]
    answers = _math_answers(drawn, written(records, "aime25"), by_problem)
    reference = references.Mathematics()
    _math(answers, reference.math_verify, tally("eval.aime_agreement"))
    _math(answers, reference.strings, tally("eval.aime_lm_eval_agreement"))


Judged = tuple[str, str, str, str]
"""Origin, shape, gold answer and text."""


def _math_answers(golds: list[str], rows: list[dict[str, Any]], by_problem: dict[str, str]) -> list[Judged]:
    draw = random.Random(2)
    found = []
    for row in rows:
        gold = row.get("gold") or next(
            (answer for problem, answer in by_problem.items() if problem in row["prompt"]), None
        )
        if gold is not None and gold.strip():
            found.append(("model", "as it is", gold, row["answer"]))
    return found + [
        ("made", shape, gold, text)
        for gold in golds
        for shape, text in cases.math_shapes(gold, draw.sample(golds, 2), draw)
    ]


def _math(answers: list[Judged], reference: Callable[[str, str], bool], tally: Tally) -> None:
    ours = MathVerifier(workers=1).scores([(gold, text) for _, _, gold, text in answers])
    for (origin, shape, gold, text), score in zip(answers, ours):
        tally.add(origin, score >= 0.5, reference(gold, text), shape=shape, gold=gold, text=text, reason=score.reason)


def bfcl(package: Path, records: list[Path], tally: Callable[[str], Tally], limit: int | None) -> None:
    """The rows in bfcl-eval's own folder with their possible answers, drawn and changed, and the models' calls."""
    reference, draw, counted = references.BFCL(), random.Random(3), tally("eval.bfcl_agreement")
    tasks = {row["id"]: (category, row, possible) for category, row, possible in _rows(package / "bfcl_eval" / "data")}
    answers = [
        ("model", "as it is", *tasks[row["task"]], [(call["name"], call["arguments"]) for call in row["tool_calls"]])
        for row in written(records, "bfcl") if row["task"] in tasks
    ]  # fmt: skip
    answers += [
        ("made", shape, category, row, possible, calls)
        for category, row, possible in list(tasks.values())[:limit]
        for shape, calls in cases.call_shapes(row["function"], possible, draw)
    ]
    for origin, shape, category, row, possible, calls in answers:
        task = {"kind": "bfcl", "category": category, "functions": row["function"], "possible": possible}
        answer = Answer("", tool_calls=tuple(ToolCall(*call) for call in calls))
        theirs = reference.right(row["function"], calls, possible, category)
        counted.add(origin, score_bfcl(Sample((), answer, task)) >= 0.5, bool(theirs), shape=shape, task=row["id"],
                    calls=calls, possible=possible, reference_failed=theirs is None)  # fmt: skip


def multi_turn(package: Path, records: list[Path], tally: Callable[[str], Tally], limit: int | None) -> None:
    """The multi-turn tasks there: see agreement_multi_turn.py."""
    agreement_multi_turn.bfcl_multi_turn(package, written(records, "bfcl-multi-turn"), tally, limit)


def _rows(folder: Path) -> Iterable[tuple[str, dict[str, Any], list[Any]]]:
    for category in BFCL_CATEGORIES:
        file = next(iter(sorted(folder.glob(f"BFCL_v[0-9]_{category}.json"))), None)
        if file is not None:
            beside = file.parent / "possible_answer" / file.name
            lines = beside.read_text(encoding="utf-8").splitlines() if beside.exists() else []
            possible = {row["id"]: row["ground_truth"] for row in map(json.loads, lines)}
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                yield category, row, possible.get(row["id"], [])


PARTS = {"ifeval": ifeval, "math": mathematics, "aime": aime, "bfcl": bfcl, "bfcl-multi-turn": multi_turn}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--records", type=Path, nargs="*", default=[])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=int, help="Tasks of each part, for a quick look.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--differences", type=Path, default=Path("differences.jsonl"))
    args = parser.parse_args()
    references.install(args.reference, args.data_root)
    tallies: dict[str, Tally] = {}

    def tally(name: str) -> Tally:
        return tallies.setdefault(name, Tally(name))

    for part in args.parts:
        function = PARTS[part]
        root = args.reference if part.startswith("bfcl") else args.data_root
        function(root, args.records, tally, args.limit)
    figures = {name: value for each in tallies.values() for name, value in each.figures().items()}
    kept = json.loads(args.json.read_text(encoding="utf-8")) if args.json and args.json.exists() else {"figures": {}}
    found = [difference for each in tallies.values() for difference in each.differences]
    args.differences.write_text(
        "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in found), encoding="utf-8"
    )
    kinds = Counter((each["scorer"], each["shape"], "ours" if each["ours"] else "theirs") for each in found)
    for (scorer, shape, accepts), count in kinds.most_common():
        print(f"{count:5} {scorer}: {shape}: right by {accepts} alone")
    for name, value in figures.items():
        print(f"{name}: {value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}] n {value['n']}")
    if args.json:
        about = {"python": platform.python_version(), "math-verify": version("math-verify"), "seed": 0}
        about |= {"lm-eval": "0.4.13", "bfcl-eval": "2026.3.23", "machine": platform.processor() or platform.machine()}
        values = {name: value["value"] for name, value in figures.items()}
        write_json(args.json, {
            "about": about, "figures": {**kept["figures"], **values},
            "intervals": {**kept.get("intervals", {}), **figures},
        })  # fmt: skip


if __name__ == "__main__":
    main()
