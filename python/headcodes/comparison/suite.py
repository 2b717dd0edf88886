"""Every method on every task with every seed: a scan whose cells are judged, as one table and one page."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcodes import methods, tasks
from headcodes.comparison.judge import Judge, about, judged_row, make_judge
from headcodes.comparison.rows import Row, write
from headcodes.errors import HeadcodesError
from headcodes.scan.cells import Worker
from headcodes.scan.plan import Cell, Plan
from headcodes.scan.run import Work, run_work
from headcodes.store.cells import whole_cells

if TYPE_CHECKING:
    from headcodes.models.model import Model

# Of a plan: what all cells of a comparison have in common.
Shared = Mapping[str, Any]


def run_quality(
    model: str,
    *,
    out: Path,
    method_ids: Sequence[str],
    task_ids: Sequence[str],
    seeds: Sequence[int],
    shared: Shared,
    revision: str | None = None,
    truth_pairs: int = 32,
    top: int | None = None,
    budget_s: float | None = None,
    with_faithfulness: bool = True,
    report: Callable[[Row], None] = lambda _row: None,
) -> list[Row]:
    """Do what the store ``out`` lacks, and return every cell, judged.

    Writes the store (docs/store.md), the judgements of its cells into ``judged``, and ``results.csv``,
    ``results.json`` and ``page.html``. A cell that was over budget is done again when the budget is larger, one that
    failed when its file is removed. What was over budget with one seed is not tried with the next ones.

    Args:
        model, revision: as ``load_model`` takes them.
        shared: settings of ``headcodes.scan.Plan``: level, n_prompts, device, dtype, projection, threads. Seed k draws
            prompts k.
        report: called with every row as soon as it is known.

    Raises:
        HeadcodesError: an unknown method or task; a model that cannot be loaded; a truth that cannot be made.
    """
    for method in method_ids:
        methods.get(method)
    for task in task_ids:
        tasks.get(task)
    worker = Worker(budget_s)
    rows: list[Row] = []
    for task in task_ids:
        make = partial(
            make_judge,
            task=task,
            top=top,
            n_pairs=truth_pairs,
            with_faithfulness=with_faithfulness,
            with_paths=shared.get("level") == "edge",
        )
        for row in judged_cells((model, revision), task, method_ids, seeds, shared, make, out, worker, budget_s):
            rows.append(row)
            report(row)
    write(rows, out)
    return rows


def judged_cells(
    model: tuple[str, str | None],
    task: str,
    method_ids: Sequence[str],
    seeds: Sequence[int],
    shared: Shared,
    make: Callable[[Model], Judge],
    out: Path,
    worker: Worker,
    budget_s: float | None,
) -> Iterator[Row]:
    """Yield the row of every method with every seed, in order; a method without the level has a row that says so."""
    judge: Judge | None = None
    over: dict[str, Row] = {}
    level = shared.get("level", "node")
    able = tuple(method for method in method_ids if level in methods.get(method).levels)
    for seed in seeds:
        plan: dict[str, Any] = {"models": (model,), "tasks": ((task, None),), "seeds": (seed,)}
        cells = {cell.method: cell for cell in Plan(methods=able, **plan, **shared, prompt_seed=seed).cells()}
        kept = _rows_kept({name: cell for name, cell in cells.items() if name not in over}, out, budget_s)
        jobs = tuple((cell.identity(), cell) for name, cell in cells.items() if name not in {*over, *kept})
        # Cells of one task and seed come in the order of their methods.
        done = run_work(Work(jobs, len(cells), n_done=len(kept), n_failed=0), out, worker=worker)
        for method in method_ids:
            if method not in cells:
                levels = " and ".join(methods.get(method).levels)
                named = {"model": model[0], "revision": model[1], "task": task, "level": level, "seed": seed}
                row = Row(
                    **about(named | {"method": method, "n_prompts": shared["n_prompts"]}),
                    status="not possible",
                    note=f"scores {levels} level only",
                )
            elif method in over:
                before = over[method]
                row = replace(before, seed=seed, note=f"{before.note} with seed {before.seed}, so not tried")
            else:
                loaded = worker.model(cells[method])
                judge = judge or make(loaded)
                row = judged_row(kept.get(method) or next(done), loaded, judge, out)
            if row.status == "over budget":
                over.setdefault(method, row)
            yield row


def _rows_kept(cells: Mapping[str, Cell], out: Path, budget_s: float | None) -> dict[str, dict[str, Any]]:
    """Return the store's rows of those cells that need not be done, or done again with a larger budget."""
    identities = {cell.identity(): name for name, cell in cells.items()}
    found = {}
    for row in whole_cells(out, identities).to_pylist():
        if row["failure"] != "budget" or (budget_s is not None and budget_s <= row["budget_s"]):
            found[identities[row["identity"]]] = row
    return found


def run_speed() -> int:
    """Run the benchmark files of a source checkout in one go and return pytest's exit status.

    Raises:
        HeadcodesError: this is no checkout: installed packages do not carry the benchmarks.
    """
    bench = Path(__file__).resolve().parents[3] / "bench"
    if not (bench / "peers").is_dir():
        raise HeadcodesError(
            "the speed suite must have a source checkout",
            f"no benchmarks at {bench}",
            "Clone the repository: make bench.",
        )
    command = [sys.executable, "-m", "pytest", str(bench), "--benchmark-enable", "--benchmark-only"]
    return subprocess.run([*command, "-o", "python_files=test_*.py"], cwd=bench.parent, check=False).returncode
