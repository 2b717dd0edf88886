"""What ``headcodes scan`` does: plan, dry run, the scan itself, and the words around it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headcodes.errors import HeadcodesError
from headcodes.scan.estimate import estimate
from headcodes.scan.log import json_line, log_of
from headcodes.scan.plan import Plan
from headcodes.scan.run import ScanEngine, run_work, survey

# What a plan is the product of, as the command line names it, with what stands for a list left out.
LISTS = {"models": "", "tasks": "ioi", "methods": "default", "seeds": "0"}


def read_plan(file: Path | None, given: Mapping[str, Any]) -> Plan:
    """Return the plan of a file, or of the lists and settings that were given on the command line.

    Raises:
        HeadcodesError: both are given, or neither; the plan is faulty.
    """
    if file is not None:
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise HeadcodesError("a plan file must be the whole plan", f"{names} beside {file}", "Put it there.")
        return Plan.from_yaml(file)
    if not given.get("models"):
        raise HeadcodesError("a scan must have a plan", "neither a plan file nor --models", "Give one of them.")
    return Plan.from_lists(**{**LISTS, **given})


def dry_run(plan: Plan, store: Path, *, engine: ScanEngine, retry_failed: bool, as_json: bool) -> None:
    """Print the cells that are left on standard output, and what they may take on standard error."""
    work = survey(plan, store, engine=engine, retry_failed=retry_failed)
    for identity, cell in work.jobs:
        print(json.dumps({"identity": identity} | vars(cell)) if as_json else f"{identity}  {cell.label}")
    failed = f", {work.n_failed} failed before" if work.n_failed else ""
    print(f"headcodes: {len(work.jobs)} of {work.n_cells} cells to do{failed}", file=sys.stderr)
    for line in estimate(work.jobs, store).lines() if work.jobs else ():
        print(f"headcodes: {line}", file=sys.stderr)


def do(
    plan: Plan,
    store: Path,
    *,
    engine: ScanEngine,
    workers: int | None,
    address: str | None,
    gpu_share: float,
    retry_failed: bool,
    json_lines: bool,
) -> int:
    """Do a scan with its log on standard error; returns the exit status: 0, 1 where cells failed, 130 on Ctrl-C."""
    work = survey(plan, store, engine=engine, retry_failed=retry_failed)
    with log_of(work) as log:
        rows = run_work(
            work,
            store,
            engine=engine,
            workers=workers,
            address=address,
            gpu_share=gpu_share,
            started=log.started,
        )
        stopped = False
        try:
            for row in rows:
                log.finished(row)
                if json_lines:
                    print(json_line(row), flush=True)
        except KeyboardInterrupt:
            stopped = True
        finally:
            rows.close()  # type: ignore[attr-defined]  # a generator: ends its workers
    print(log.summary(), file=sys.stderr)
    if stopped:
        again = shlex.join(["headcodes", *(word for word in sys.argv[1:] if word != "--retry-failed")])
        print(f"headcodes: stopped; what is done is kept in {store}. To go on: {again}", file=sys.stderr)
        return 130
    return 1 if log.failures else 0
