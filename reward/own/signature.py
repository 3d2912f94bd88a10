"""What a user's function takes, read from its source (without running it) or from the function itself."""

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from nanoalign.common.printable import nearest
from nanoalign.reward.config import OwnReward

SAMPLES = "samples"
GIVEN = ("prompts", "completions", "completion_ids", "completions_ids", "trainer_state", "log_extra", "log_metric")
"""What TRL gives a reward function besides the data set's columns. ``completions_ids`` is the name in some versions of
its documentation for what its code calls ``completion_ids``."""
SETTINGS = tuple(OwnReward.model_fields)
_READS_MESSAGES = re.compile(r"""\[\s*['"]content['"]\s*\]|\.get\(\s*['"]content['"]""")


@dataclass(frozen=True)
class Signature:
    """A function's parameters and what can be told of how it is called."""

    named: tuple[str, ...]
    """Those that can be given by name, in order."""
    required: tuple[str, ...]
    """Of these, those without a default."""
    positional_only: tuple[str, ...]
    any_keyword: bool
    """It has ``**kwargs``."""
    awaited: bool
    """It is an ``async def``."""
    messages: bool
    """It reads completions as messages: by the annotation of ``completions`` or, without one, because it reads a
    ``["content"]``."""

    @property
    def takes_samples(self) -> bool:
        """It is called with ``samples``; otherwise as TRL does."""
        return SAMPLES in self.named

    def fault(self, parameters: Mapping[str, Any]) -> tuple[str, str] | None:
        """What is wrong with calling it with these of a recipe: (the parameter or "", a message). None: nothing."""
        if self.positional_only:
            return "", f"its parameter `{self.positional_only[0]}` takes no keyword (it stands before a `/`)"
        if not (self.takes_samples or self.any_keyword or set(GIVEN) & set(self.named)):
            return "", "its signature takes neither `samples` nor, as TRL's functions do, `completions` or `prompts`"
        given = (SAMPLES,) if self.takes_samples else GIVEN
        settable = [name for name in self.named if name not in given]
        for name in parameters:
            if name in given:
                return name, "is what we give the function, not a parameter to set"
            if name in settable:
                continue
            near = get_close_matches(name, [*settable, *SETTINGS], n=1, cutoff=0.8)
            if not self.any_keyword:
                return name, f"is no parameter of the function{nearest(name, [*settable, *SETTINGS])}"
            if near:  # **kwargs would swallow it
                return name, f"is no parameter that the function names; did you mean `{near[0]}`?"
        if self.takes_samples:
            for name in settable:
                if name in self.required and name not in parameters:
                    return "", f"its parameter `{name}` has no default and is not set here"
        return None


def of_node(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Signature:
    """The signature of a function in a parsed file."""
    arguments = node.args
    ordered = [*arguments.posonlyargs, *arguments.args]
    required = {each.arg for each in ordered[: len(ordered) - len(arguments.defaults)]}
    required |= {each.arg for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults) if default is None}
    named = [*arguments.args, *arguments.kwonlyargs]
    said = next((each.annotation for each in named if each.arg == "completions"), None)
    return Signature(
        tuple(each.arg for each in named),
        tuple(each.arg for each in named if each.arg in required),
        tuple(each.arg for each in arguments.posonlyargs),
        arguments.kwarg is not None,
        isinstance(node, ast.AsyncFunctionDef),
        _messages(ast.unparse(said) if said else "", ast.unparse(node)),
    )


def of_object(function: Any) -> Signature:
    """The signature of a function, a partial or an instance with ``__call__``. Raises TypeError or ValueError where it
    has none."""
    parameters = inspect.signature(function).parameters.values()
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    said = next((each.annotation for each in named if each.name == "completions"), "")
    said = "" if said is inspect.Parameter.empty else said
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    code = inner if inspect.isroutine(inner) else type(inner).__call__
    return Signature(
        tuple(each.name for each in named),
        tuple(each.name for each in named if each.default is each.empty),
        tuple(each.name for each in parameters if each.kind is each.POSITIONAL_ONLY),
        any(each.kind is each.VAR_KEYWORD for each in parameters),
        inspect.iscoroutinefunction(code),
        _messages(said if isinstance(said, str) else str(said), _source(code)),
    )


def _messages(annotation: str, source: str) -> bool:
    return bool(re.search("dict|message", annotation, re.IGNORECASE) if annotation else _READS_MESSAGES.search(source))


def _source(code: Any) -> str:
    try:
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(code))))
    except (OSError, TypeError, SyntaxError):
        return ""
