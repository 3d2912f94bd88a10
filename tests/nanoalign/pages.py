"""A page of docs/, typed in a folder from top to bottom: its files, its commands, and what they say."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def blocks_of(page: str) -> list[tuple[str, str, str]]:
    """(kind, file name or "", text) of each block of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)(?: #(\S+))?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def type_page(page: str, folder: Path) -> None:
    """Types a page's files and commands; what a command says is compared with what the page shows, in which ``...``
    stands for what is left out."""
    (folder / "bin").mkdir()
    python = shlex.quote(sys.executable)  # a link to it would not find its environment's packages
    for name, command in {"nanoalign": f'{python} -c "from nanoalign.cli import app; app()"', "python": python}.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    for kind, name, text in blocks_of(page):
        if name:
            (folder / name).write_text(text, encoding="utf-8")
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:] if kind == "console" else []:
            typed, *shown = part.splitlines()
            done = subprocess.run(
                typed, shell=True, cwd=folder, env={**os.environ, "PATH": path, "COLUMNS": "120"},
                capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            assert done.returncode == 0, f"{typed}: {done.stdout}{done.stderr}"
            said = [line.strip() for line in done.stdout.splitlines()]
            for line in shown:
                start, cut, _ = line.strip().partition("...")
                told = any(each.startswith(start) if cut else each == start for each in said)
                assert told, f"{typed} does not say: {line}\n{done.stdout}"
