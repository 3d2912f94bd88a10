"""Answers a verifier pool's questions in the sandbox. Started by reward/verifier_pool.py: ``python worker.py KIND``.

A question is a line of JSON (wire.py) on standard input, its verdict a line ``[score, reason]`` on what was standard
output. The verifier's package is imported before the restrictions apply; afterwards only the folders of the packages
that it brought along can still be read.

Some verifiers evaluate the answer as Python (nine of reasoning-gym's data sets; math-verify, through SymPy). Here that
is arithmetic at most: an audit hook sees all code before it runs, and refuses whatever does more than build numbers,
containers and SymPy's expressions of them. So no answer can change its verdict or a later one. The sandbox is a second
line of defence, with as many layers as the machine has; the first line lists the missing ones.
"""

import dis
import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any, BinaryIO

import algebra
import lockdown
import wire

sys.path.pop(0)  # this folder

Verdict = tuple[float, str]
MEMORY_BYTES = 4 * 2**30
SECONDS = 3.0
"""Of processor time for a question, not of the clock: a busy machine gives no other scores."""
TOO_LONG, CODE = "over the time limit", "the answer is code"
_STEPS = frozenset((
    "RESUME", "CACHE", "EXTENDED_ARG", "NOP", "LOAD_CONST", "LOAD_SMALL_INT", "RETURN_CONST", "RETURN_VALUE",
    "LOAD_NAME", "LOAD_GLOBAL", "PUSH_NULL", "PRECALL", "CALL", "KW_NAMES", "CALL_KW", "UNARY_NEGATIVE",
    "UNARY_POSITIVE", "UNARY_INVERT", "UNARY_NOT", "CALL_INTRINSIC_1", "BINARY_OP", "COMPARE_OP", "BUILD_LIST",
    "BUILD_TUPLE", "BUILD_SET", "BUILD_MAP", "BUILD_CONST_KEY_MAP", "LIST_EXTEND", "SET_UPDATE", "LIST_APPEND",
    "SET_ADD", "MAP_ADD", "NOT_TAKEN", "COPY", "SWAP", "POP_TOP",
))  # fmt: skip
_NAMES = frozenset((
    "Integer", "Float", "Rational", "Symbol", "Function", "Add", "Mul", "Pow", "Mod", "Not", "And", "Or", "Eq",
    "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "LessThan", "GreaterThan", "StrictLessThan",
    "StrictGreaterThan", "evaluate", "factorial", "factorial2", "pi", "E", "I", "oo", "zoo", "nan", "C", "Abs",
    "sign", "sqrt", "cbrt", "root", "exp", "log", "ln", "sin", "cos", "tan", "cot", "sec", "csc", "sinh",
    "cosh", "tanh", "coth", "sech", "csch", "asin", "acos", "atan", "acot", "asec", "acsc", "atan2", "asinh",
    "acosh", "atanh", "acoth", "floor", "ceiling", "Min", "Max", "erf", "erfc", "gamma", "binomial", "Tuple",
    "FiniteSet", "Interval", "Union",
))  # fmt: skip
_TEMPLATES = {("sympy.polys.monomials", "_build"), ("collections", "namedtuple"), ("dataclasses", "_create_fn")}
"""Functions that run code made from a template and a number or a class, not from a text."""
_STAR = compile("from sympy import *", "<string>", "exec")  # what SymPy's parser runs at each call

BEYOND = {rf"\{name}" for name in (
    "int", "sum", "prod", "lim", "to", "min", "max", "gcd", "lcm", "det", "lfloor", "rfloor", "lceil", "rceil", "pmod",
    "mod", "begin", "end",
)}  # fmt: skip
"""Commands that are left to math-verify."""


class TooLong(BaseException):
    """No Exception, as libraries swallow those."""


class Guard:
    """The audit hook. It cannot be removed; ``refused`` holds what it met since it was last cleared."""

    def __init__(self) -> None:
        self.refused = False
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "exec" and not self._harmless(args[0], sys._getframe(1)):
            self.refused = True
            raise ValueError(CODE)

    def _harmless(self, code: CodeType, caller: FrameType) -> bool:
        if (caller.f_globals.get("__name__"), caller.f_code.co_name) in _TEMPLATES:
            return True
        if os.path.isabs(code.co_filename) or code.co_filename.startswith("<frozen "):
            return True  # a module that is being imported: a text has no such name
        if (code.co_code, code.co_names, code.co_consts) == (_STAR.co_code, _STAR.co_names, _STAR.co_consts):
            return True
        steps = dis.get_instructions(code)
        return all(
            step.opname in _STEPS and (step.opname not in ("LOAD_NAME", "LOAD_GLOBAL") or _known(step.argval))
            for step in steps
        ) and not any(isinstance(each, CodeType) for each in code.co_consts)


def _known(name: str) -> bool:
    """Variables of a question have names of one letter."""
    return name in _NAMES or len(name) == 1


def mathematics() -> Callable[[Any], float]:
    """Questions ``[gold, answer]``; 1.0 where they are the same algebra: by algebra.py, and by math-verify where that
    does not know the notation. math-verify's readings are taken only where it left nothing out: its parser drops what
    it does not know, down to the last number of a text."""
    from math_verify import LatexExtractionConfig, parse, verify

    @lru_cache(maxsize=512)
    def parsed(text: str) -> list[Any]:
        """Cached, as a group of answers shares its gold answer and often agrees."""
        if "." in text or not set(re.findall(r"\\[a-zA-Z]+", text)) <= algebra.COMMANDS | BEYOND:
            return []  # decimals are compared to six digits
        found = parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
        letters = set(re.findall(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", text)) - set("deiEI")
        return found if letters <= {str(name)[0] for each in found for name in each.atoms()} else []

    def equal(question: tuple[str, str]) -> float:
        gold, answer = question
        verdict = algebra.equivalent(gold, answer)
        if verdict is None:
            verdict = verify(parsed(gold), parsed(answer), timeout_seconds=None)
        return float(bool(verdict))

    equal((r"\int_0^1 x\,dx", r"\sum_{k=1}^{2} k"))  # SymPy's late imports, before the first question is timed
    return equal


def reasoning_gym() -> Callable[[Any], float]:
    """Questions ``[data set, answer, entry]``; 1.0 where its verifier gives full marks. Partial ones count for nothing:
    some reward a text that merely contains the answer."""
    import sympy
    from reasoning_gym.factory import get_score_answer_fn

    verifier = lru_cache(maxsize=None)(get_score_answer_fn)
    for text in ("x**2 + sin(x)/2", "2*(3 - 1)"):
        sympy.simplify(sympy.parse_expr(text))

    def right(question: tuple[str, str, Any]) -> float:
        dataset, answer, entry = question
        if float(verifier(dataset)(answer, entry)) < 1.0:
            return 0.0
        return float(dataset not in LENIENT or LENIENT[dataset](answer, entry))

    return right


def _probability(answer: str, entry: Any) -> bool:
    said, right = (float(Fraction(text.replace(",", ""))) for text in (answer, entry["answer"]))
    return abs(said - right) <= min(1e-4, 1e-2 * right)


def _makes_24(answer: str, entry: Any) -> bool:
    from sympy import parse_expr

    numbers = [int(digits) for digits in re.findall(r"\d+", answer)]
    return sorted(numbers) == sorted(entry["metadata"]["numbers"]) and bool(parse_expr(answer.strip()) == 24)


LENIENT: dict[str, Callable[[str, Any], bool]] = {
    "coin_flip": _probability,
    "complex_arithmetic": lambda answer, entry: "nan" not in answer.casefold(),
    "game_of_life_halting": lambda answer, entry: answer.strip().casefold() == entry["answer"].casefold(),
    "puzzle24": _makes_24,
}
"""What reasoning-gym 0.1.25 forgets: its verifiers of these data sets give full marks for one answer to every question
("0", "nan", any text at all, "4*6*1*1")."""


VERIFIERS = {"math": mathematics, "reasoning_gym": reasoning_gym}


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooLong


def ask(verify: Callable[[Any], float], guard: Guard, question: Any) -> Verdict:
    """The timer fires again each second, should a bare ``except`` have swallowed the first; what never comes back to
    Python is ended by the kernel."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + 2 * SECONDS) + 1, resource.RLIM_INFINITY))
    guard.refused = False
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS, 1.0)
        score, reason = verify(question), ""
    except TooLong:
        score, reason = 0.0, TOO_LONG
    except Exception as error:
        score, reason = 0.0, f"the verifier raised {type(error).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
    return (score, reason) if not guard.refused else (0.0, CODE)


def main() -> None:
    verdicts = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    logging.disable(logging.CRITICAL)
    verify = VERIFIERS[sys.argv[1]]()
    modules = [module for name, module in sys.modules.items() if "." not in name and name != "__main__"]
    packages = {
        os.path.dirname(file) for module in modules if (file := getattr(module, "__file__", "")) and _package(file)
    }
    missing = lockdown.restrict(None, MEMORY_BYTES, 65536, sorted(packages), required=False)
    try:
        lockdown.seal()
    except (OSError, AttributeError):
        missing.append("seccomp")
    guard = Guard()
    signal.signal(signal.SIGPROF, _stop)
    say(verdicts, missing)
    os.dup2(nothing, 2)
    for line in sys.stdin.buffer:
        say(verdicts, ask(verify, guard, wire.unpack(json.loads(line))))


def _package(file: str) -> bool:
    return os.path.basename(file).startswith("__init__.")


def say(verdicts: BinaryIO, what: Any) -> None:
    verdicts.write(json.dumps(what).encode() + b"\n")
    verdicts.flush()


if __name__ == "__main__":
    main()
