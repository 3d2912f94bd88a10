"""Runs a program in the sandbox. Started by reward/sandbox.py as ``python -E -S program.py CODE_FD TESTS_FD TOLD_FD
SECONDS MEMORY_BYTES OUTPUT_BYTES FOLDER...``: the folders of installed packages (-S, as looking for them, and what they
would run at each start, takes as long as all the rest).

Without tests (TESTS_FD is -1) the program runs alone, from standard input to standard output. With tests there are two
processes: the program's has the code, two pipes and nothing to report; the judge's has the tests, trusts only what
remote.py lets through from the program, and reports the verdict through TOLD_FD. The verdict is on what the tests
found: a program cannot reach the process that holds it.
"""

import ast
import builtins
import os
import site
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import lockdown
import remote

sys.path.pop(0)  # this folder: programs find the libraries alone


def main() -> None:
    code_fd, tests_fd, told_fd, *limits = map(int, sys.argv[1:7])
    packages = sys.argv[7:]
    sys.path += packages
    sys.argv[:] = ["program.py"]
    site.setquit()  # exit() and quit()
    hidden = not lockdown.restrict(*limits, packages)
    if tests_fd < 0:
        lockdown.seal()
        _tell(told_fd, f"walls up {hidden}")
        os.close(told_fd)
        run(_read(code_fd), "__main__")
        return
    asked, ask = os.pipe()
    answered, answer = os.pipe()
    if program := os.fork():
        for each in (code_fd, asked, answer):
            os.close(each)
        lockdown.seal()
        _tell(told_fd, f"walls up {hidden}")
        _tell(
            told_fd, judge(_read(tests_fd), remote.JudgeEnd(os.fdopen(answered, "rb"), os.fdopen(ask, "wb")), program)
        )
        return
    for each in (tests_fd, told_fd, ask, answered):
        os.close(each)
    lockdown.seal()
    source, sink = os.fdopen(asked, "rb"), os.fdopen(answer, "wb")
    remote.ProgramEnd(source, sink, run(_read(code_fd), "program")).serve()
    os._exit(0)


def _read(handle: int) -> str:
    with os.fdopen(handle, "rb") as file:
        return file.read().decode()


def _tell(handle: int, word: str) -> None:
    os.write(handle, word.encode("utf-8", "replace") + b"\n")


def run(code: str, name: str) -> dict[str, Any]:
    """The program's global names after it ran as the module ``name``."""
    module = sys.modules[name] = ModuleType(name)
    exec(compile(code, "<program>", "exec"), module.__dict__)
    return module.__dict__


def judge(tests: str, program: remote.JudgeEnd, process: int) -> str:
    """``passed``, ``failed``, or why there is no verdict."""
    try:
        space = names(tests, program) if program.ready() else None
        if space is None:
            return _ended(program, process)
        exec(compile(tests, "<tests>", "exec"), space)
        passed = not program.failed
    except (remote.Unsupported, remote.Ended):
        passed = False
    except BaseException:
        traceback.print_exc()
        passed, program.refused = False, program.refused or program.doubt
    if program.ended:
        return _ended(program, process)
    if program.refused:
        return f"the tests cannot be run from another process: {program.refused}"
    return "passed" if passed else "failed"


def names(tests: str, program: remote.JudgeEnd) -> dict[str, Any]:
    """What the tests' names mean: built-in names and modules of the standard library what they always do, whatever the
    program did to them, and all others what the program defines. Only where the tests name nothing else of the
    program's (a task may ask for a function ``sum``), such names are the program's as well."""
    used, bound = set[str](), set[str]()
    for node in ast.walk(ast.parse(tests)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    used -= bound
    common = {name for name in used if name in sys.stdlib_module_names or hasattr(builtins, name)}
    found = program.names(sorted(used - common)) or program.names(sorted(common))
    return {"__name__": "__main__", **_modules((used & sys.stdlib_module_names) - found.keys()), **found}


def _modules(names: set[str]) -> dict[str, ModuleType]:
    found = {}
    for name in names:
        with suppress(ImportError):
            found[name] = import_module(name)
    return found


def _ended(program: remote.JudgeEnd, process: int) -> str:
    program.close()  # should it still be writing
    _, status = os.waitpid(process, 0)
    return "over the time limit" if os.waitstatus_to_exitcode(status) in (-9, -24) else "failed"


if __name__ == "__main__":
    main()
