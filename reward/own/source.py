"""Whether a user's function can be a reward, from its source: it is neither imported nor run."""

import ast
from typing import Any

from nanoalign.common.errors import ConfigError
from nanoalign.common.user_code import definition, failing_import, find
from nanoalign.reward.config import section_of
from nanoalign.reward.own.signature import Signature, of_node

PLAIN = (ast.Constant, ast.List, ast.Dict, ast.Tuple, ast.Set, ast.JoinedStr)
"""Values that cannot be called."""


def signature(key: str) -> Signature | None:
    """Of the function that a key of `reward` names; None where only the function itself shows it: it is assigned, or
    decorated. Raises ConfigError, with file and line, where it is no function."""
    code = find(key)
    what = definition(code)
    node = what.node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None if node.decorator_list else of_node(node)
    if isinstance(node, ast.ClassDef):
        advice = f"name a function, or `{code.name.lower()} = {code.name}(...)`"
        raise ConfigError(f"{what.place}: `{code.name}` is a class; {advice}")
    if isinstance(node, ast.Import) or isinstance(getattr(node, "value", None), PLAIN):
        raise ConfigError(f"{what.place}: `{code.name}` is not a function")
    return None


def check(key: str, value: Any) -> tuple[str, str] | None:
    """What keeps a recipe's entry from working, as far as it shows without running it: (the parameter at fault or "",
    a message). None: nothing."""
    try:
        code = find(key)
        known, failing = signature(key), failing_import(code)
    except ConfigError as error:
        return "", str(error)
    if failing is not None:
        return "", failing
    fault = known.fault(section_of(value).parameters) if known is not None else None
    return fault if fault is None or fault[0] else ("", f"{definition(code).place}: {fault[1]}")
