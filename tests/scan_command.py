"""`headcodes scan` in a process of its own, and a small plan of planted models."""

from __future__ import annotations

import multiprocessing
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headcodes.scan import Plan

PLANTED = ["--models", "planted-ioi", "--methods", "act-norm,mean-diff,code-flip", "--seeds", "1", "--n-prompts", "12"]


# One server imports for all; processes forked from it start at once.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["headcodes.discovery", "headcodes.models.planted", "transformers.models.mistral"])
CHILD = """
import os, sys
for number, name in ((1, out), (2, err)):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
exec(before)
sys.argv = ["headcodes", "scan", *arguments]
import headcodes.cli
headcodes.cli.main()
"""


@dataclass
class Ended:
    returncode: int
    stdout: str
    stderr: str


def command(*arguments: object, before: str = "", **names: object) -> Ended:
    """``headcodes scan`` in a process of its own, in which ``before`` is executed first."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        given = {"out": str(out), "err": str(err), "before": before, "arguments": [str(word) for word in arguments]}
        process = SERVER.Process(target=exec, args=(CHILD, {"__name__": "child", **given, **names}))
        process.start()
        process.join()
        assert process.exitcode is not None
        return Ended(process.exitcode, out.read_text(), err.read_text())


def planted_plan(**changes: Any) -> Plan:
    return Plan.from_lists(
        changes.pop("models", "planted-ioi"),
        changes.pop("tasks", "ioi"),
        changes.pop("methods", "act-norm,mean-diff,code-flip"),
        changes.pop("seeds", "1"),
        n_prompts=12,
        **changes,
    )
