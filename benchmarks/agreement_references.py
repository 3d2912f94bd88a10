"""The reference scorers: lm-evaluation-harness's IFEval and AIME, math-verify as its MATH-500 calls it, and bfcl-eval.

They are installed apart, without their dependencies on models:
``pip install --no-deps --target FOLDER lm-eval langdetect nltk joblib defusedxml immutabledict six bfcl-eval``.
"""

import importlib
import os
import random
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def install(folder: Path, data_root: Path) -> None:
    """Makes the packages importable, without running what imports models and endpoints."""
    sys.path.append(str(folder))
    os.environ.setdefault("NLTK_DATA", str(data_root / "nltk_data"))
    for name in (
        "lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval", "lm_eval.tasks.aime",
        "bfcl_eval", "bfcl_eval.eval_checker", "bfcl_eval.eval_checker.ast_eval", "bfcl_eval.constants",
        "bfcl_eval.eval_checker.multi_turn_eval",
    ):  # fmt: skip
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    models: Any = types.ModuleType("bfcl_eval.constants.model_config")  # the real one imports every endpoint's client
    models.MODEL_CONFIG_MAPPING = {"ours": types.SimpleNamespace(underscore_to_dot=False)}
    sys.modules[models.__name__] = models
    importlib.import_module("langdetect").DetectorFactory.seed = 0


class IFEval:
    """``lm_eval/tasks/ifeval/utils.py``."""

    def __init__(self) -> None:
        self.utils = importlib.import_module("lm_eval.tasks.ifeval.utils")

    def verdicts(self, row: Mapping[str, Any], text: str) -> dict[str, list[bool]]:
        """Strict and loose, instruction by instruction."""
        random.seed(0)  # it draws what a row leaves open
        found = self.utils.process_results(dict(row), [text])
        return {"strict": found["inst_level_strict_acc"], "loose": found["inst_level_loose_acc"]}


class Mathematics:
    """math-verify as ``lm_eval/tasks/minerva_math/utils.py`` calls it, and the string rule of its AIME."""

    def __init__(self) -> None:
        import math_verify

        self.library = math_verify
        self.aime = importlib.import_module("lm_eval.tasks.aime.utils")
        self.golds: dict[str, Any] = {}

    def math_verify(self, gold: str, text: str) -> bool:
        """What it says of a whole answer."""
        if gold not in self.golds:
            self.golds[gold] = self.library.parse(f"$\\boxed{{{gold}}}$")
        return bool(self.library.verify(gold=self.golds[gold], target=self.library.parse(text)))

    def strings(self, gold: str, text: str) -> bool:
        """lm-eval's AIME."""
        return bool(self.aime.process_results({"answer": gold}, [text])["exact_match"])


class BFCL:
    """``bfcl_eval``'s AST checker, for models that call functions by JSON."""

    def __init__(self) -> None:
        self.check = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker
        self.python = importlib.import_module("bfcl_eval.constants.enums").Language.PYTHON

    def right(
        self, functions: Sequence[Any], calls: Sequence[tuple[str, Any]], possible: Sequence[Any], category: str
    ) -> bool | None:
        """None where the checker itself fails."""
        if category.endswith("relevance"):
            return bool(calls) != category.endswith("irrelevance")
        output = [{name: arguments} for name, arguments in calls]
        if not output:
            return False
        try:
            return bool(self.check(functions, output, possible, self.python, category, "ours")["valid"])
        except (AttributeError, TypeError, KeyError):
            return None
