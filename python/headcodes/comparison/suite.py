"""Every method on every task with every seed: one table, one page, continued where it stopped.

A cell is one method, task and seed on one model. It is worked out by itself, prompts and captured activations
included, so that its seconds are what a user would wait; it is kept as one small file as soon as it is there. What a
method cannot do, or cannot do within the budget, is a row that says so.
"""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headcodes import methods, metrics, tasks
from headcodes.comparison.rows import SCHEMA, Row, write
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.evaluation.areas import edge_cpr_cmd, head_cpr_cmd
from headcodes.evaluation.faithfulness import curve
from headcodes.files import atomic_write, checksum
from headcodes.interventions.patch import causal_truth
from headcodes.methods.inputs import Inputs
from headcodes.models import planted
from headcodes.prompts.tokens import TokenPairs, tokenize
from headcodes.provenance import code_checksum

if TYPE_CHECKING:
    from headcodes.methods import Level
    from headcodes.methods.findings import Findings
    from headcodes.models.model import Model


# Seeds of prompts that judge; methods get the seeds from 0 up.
TRUTH_SEED = 10_000


@dataclass(frozen=True)
class Judge:
    """What a task's cells are judged by.

    Attributes:
        name: of the truth. labels: which heads are in it. pair_labels: which pairs, where it knows.
        tokens: prompts for faithfulness, other ones than the methods get; None where pairs are of unequal length.
    """

    name: str
    labels: np.ndarray
    pair_labels: np.ndarray | None
    tokens: TokenPairs | None


def judge(model: Model, task: str, *, top: int = 20, n_pairs: int = 32, n_faithfulness: int = 8) -> Judge:
    """Return the planted truth of a planted model, else the causal truth: the ``top`` heads of largest |effect|."""
    known = planted.load(model.name) if planted.is_planted(model.name) else None
    if known is not None and known.task.id != task:
        raise HeadcodesError(f"{model.name} does the task {known.task.id}", task, f"Choose --tasks {known.task.id}.")
    tokens = tokenize(tasks.get(task).build(model.tokenizer, n=2 * n_pairs, seed=TRUTH_SEED), model.tokenizer)
    some = tokens.subset(range(min(n_faithfulness, len(tokens))))
    if known is not None:
        return Judge("planted", known.truth.labels, known.truth.pair_labels, some)
    truth = causal_truth(model, tokens, pairs=n_pairs)
    return Judge(f"causal, {len(truth.effects)} pairs", truth.labels(top), None, some)


class BudgetExceeded(BaseException):
    """A cell took longer than it may. No Exception, so that nothing inside a method can take it for its own."""


@contextmanager
def budget(seconds: float | None) -> Iterator[None]:
    """Raise ``BudgetExceeded`` in here after so many seconds. Only the main thread of a Unix system can be stopped."""
    can_stop = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not can_stop:
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise BudgetExceeded

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Yield a function that says how many bytes more than at the start were held at most; None where nobody knows."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        yield lambda: int(torch.cuda.max_memory_allocated(device) - held)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: forget the peak so far
        resident = _status_bytes("VmRSS")
    except OSError:
        yield lambda: None
        return
    yield lambda: max(0, _status_bytes("VmHWM") - resident)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def run_cell(
    model: Model,
    judged: Judge,
    *,
    task: str,
    method: str,
    level: Level,
    seed: int,
    n_pairs: int,
    budget_s: float | None = None,
    with_faithfulness: bool = True,
) -> Row:
    """Work out one cell. Never raises for what happens inside a method."""
    about: dict[str, Any] = {
        "model": model.name,
        "task": task,
        "method": method,
        "level": level,
        "seed": seed,
        "n_pairs": n_pairs,
        "truth": judged.name,
    }
    try:
        chosen = methods.get(method)
        if level not in chosen.levels:
            return Row(**about, status="not possible", note=f"scores {' and '.join(chosen.levels)} level only")
        tokens = tokenize(tasks.get(task).build(model.tokenizer, n=n_pairs, seed=seed), model.tokenizer)
        with warnings.catch_warnings(), peak_memory(model.device) as peak:
            warnings.simplefilter("ignore", HeadcodesWarning)
            start = time.perf_counter()
            with budget(budget_s):
                findings = chosen.find(Inputs(model, tokens), level, seed)
                if model.device.type == "cuda":
                    torch.cuda.synchronize(model.device)
            found: dict[str, Any] = {"seconds": time.perf_counter() - start, "peak_bytes": peak()}
        scores = findings.head_scores
        found |= {
            "auc": metrics.roc_auc(scores, judged.labels),
            "ap": metrics.average_precision(scores, judged.labels),
            "labels": judged.labels.tolist(),
            "scores": scores.tolist(),
        }
        if findings.mention_scores is not None:
            found["mention_auc"] = metrics.mention_auc(findings.mention_scores, judged.labels)
        if findings.pair_scores is not None and judged.pair_labels is not None:
            found["pair_auc"] = metrics.pair_auc(findings.pair_scores, judged.pair_labels, model.n_heads)
        if with_faithfulness and judged.tokens is not None and judged.tokens.equal_lengths:
            found |= _faithfulness(model, judged.tokens, findings, level)
        return Row(**about, status="ok", **found)
    except BudgetExceeded:
        return Row(**about, status="over budget", note=f"more than {budget_s:g} s")
    except HeadcodesError as error:
        return Row(**about, status="not possible", note=str(error))
    except Exception as error:  # one failing cell never ends a suite
        return Row(**about, status="failed", note=f"{type(error).__name__}: {error}".splitlines()[0])


def _faithfulness(model: Model, tokens: TokenPairs, findings: Findings, level: Level) -> dict[str, Any]:
    """Return the curve, CPR and CMD (at edge level where the method has edges); a note for what cannot be made."""
    found: dict[str, Any] = {}
    scores = findings.head_scores
    try:
        line = curve(model, tokens, scores, n_random=0)
        found |= {"sizes": line.sizes, "faithfulness": line.faithfulness}
        if level == "node":
            areas = head_cpr_cmd(model, tokens, findings.signed_scores)
        elif findings.edges is not None:
            areas = edge_cpr_cmd(model, tokens, findings.edges)
        else:
            return found
        found |= {"cpr": areas["cpr"], "cmd": areas["cmd"]}
    except HeadcodesError as error:
        found["note"] = f"no CPR and CMD: {error}"
    return found


def run_quality(
    model: Model,
    *,
    out: Path,
    method_ids: Sequence[str],
    task_ids: Sequence[str],
    seeds: Sequence[int],
    level: Level = "node",
    n_pairs: int = 50,
    truth_pairs: int = 32,
    top: int = 20,
    budget_s: float | None = None,
    with_faithfulness: bool = True,
    report: Callable[[Row], None] = lambda _row: None,
) -> list[Row]:
    """Work out every cell that ``out`` does not hold yet, and return all of them.

    Writes ``cells/*.json`` as they come, then ``results.csv``, ``results.json`` and ``page.html``. Cells of other code,
    another model or other settings are other cells. One that was over budget or failed is tried again when the budget
    is larger, or by removing its file. What was over budget with one seed is not tried with the next ones.

    Args:
        report: called with every row as soon as it is known.

    Raises:
        HeadcodesError: an unknown method or task; a truth that cannot be made.
    """
    for method in method_ids:
        methods.get(method)
    for task in task_ids:
        tasks.get(task)
    rows: list[Row] = []
    for task in task_ids:
        judged: Judge | None = None
        too_dear: dict[str, Row] = {}
        for seed in seeds:
            for method in method_ids:
                key = [code_checksum(), model.checksum, str(model.dtype), task, method, level, seed, n_pairs]
                key += [truth_pairs, top, with_faithfulness]
                name = f"{task}-{method}-{level}-{seed}-{checksum(json.dumps(key).encode())[:8]}.json"
                path = out / "cells" / name
                row = _read_cell(path, budget_s)
                if row is None and method in too_dear:
                    before = too_dear[method]
                    row = replace(before, seed=seed, note=f"{before.note} with seed {before.seed}, so not tried")
                elif row is None:
                    judged = judged or judge(model, task, top=top, n_pairs=truth_pairs)
                    row = run_cell(
                        model,
                        judged,
                        task=task,
                        method=method,
                        level=level,
                        seed=seed,
                        n_pairs=n_pairs,
                        budget_s=budget_s,
                        with_faithfulness=with_faithfulness,
                    )
                    with atomic_write(path) as temporary:
                        kept = {"schema": SCHEMA, "kind": "bench-cell", "budget_s": budget_s, **asdict(row)}
                        temporary.write_text(json.dumps(kept), encoding="utf-8")
                if row.status == "over budget":
                    too_dear.setdefault(method, row)
                rows.append(row)
                report(row)
    write(rows, out)
    return rows


def _read_cell(path: Path, budget_s: float | None) -> Row | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        row = Row(**{field.name: kept[field.name] for field in fields(Row)})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    had = kept.get("budget_s")
    more = had is not None and (budget_s is None or budget_s > had)
    return None if row.status == "over budget" and more else row


def all_methods() -> list[str]:
    """Return every method's id."""
    return list(methods.METHODS)


def run_speed() -> int:
    """Run the benchmark files of a source checkout in one go and return pytest's exit status.

    Raises:
        HeadcodesError: this is no checkout: installed packages do not carry the benchmarks.
    """
    bench = Path(__file__).resolve().parents[3] / "bench"
    if not (bench / "peers").is_dir():
        raise HeadcodesError(
            "the speed suite needs a source checkout", f"no benchmarks at {bench}", "Clone the repository: make bench."
        )
    command = [sys.executable, "-m", "pytest", str(bench), "--benchmark-enable", "--benchmark-only"]
    return subprocess.run([*command, "-o", "python_files=test_*.py"], cwd=bench.parent, check=False).returncode
