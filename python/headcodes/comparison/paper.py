"""The published comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headcodes import methods
from headcodes.comparison.judge import Judge
from headcodes.comparison.rows import Row, summarise, write
from headcodes.comparison.suite import Shared, judged_cells
from headcodes.errors import HeadcodesError
from headcodes.evaluation import truths
from headcodes.scan.cells import Worker
from headcodes.scan.plan import Plan

if TYPE_CHECKING:
    from headcodes.models.model import Model

# Published ROC AUC, node / edge (over heads by mentions for the codes, over true edges for the others): the results
# file of O'Neill & Bui 2024 and the best settings of Conmy et al. 2023.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "paper": {"docstring": (0.869, 0.896), "greater-than": (0.855, 0.873), "ioi": (0.868, 0.840)},
    "acdc": {"docstring": (0.950, 0.982), "greater-than": (0.890, 0.853), "ioi": (0.880, 0.869)},
    "sp": {"docstring": (0.928, 0.937), "greater-than": (0.827, 0.806), "ioi": (0.842, 0.823)},
    "hisp": {"docstring": (0.889, 0.821), "greater-than": (0.642, 0.706), "ioi": (0.728, 0.837)},
}
PAPER_CELLS = (
    ("attn-only-4l", "docstring", "conmy2023"),
    ("gpt2", "greater-than", "conmy2023"),
    ("gpt2", "ioi", "wang2022"),
)
PAPER_METHODS = ("paper", "paper-scaled", "default", "acdc", "sp", "hisp", "mean-diff", "eap", "eap-ig-inputs")


def run_paper(
    *,
    out: Path,
    seeds: Sequence[int] = (0,),
    shared: Shared,
    budget_s: float | None = None,
    report: Callable[[Row], None] = lambda _row: None,
) -> tuple[list[Row], list[str]]:
    """Run the published comparison where the hub can be reached; return the rows and a list of what is missing.

    Nothing is put in place of a model that is not there.
    """
    rows: list[Row] = []
    missing: dict[str, str] = {}
    worker = Worker(budget_s)
    for name, task, truth_name in PAPER_CELLS:
        first = next(Plan(models=((name, None),), **shared).cells())
        try:
            worker.model(first)
        except HeadcodesError as error:
            wanted = ", ".join(task for model, task, _ in PAPER_CELLS if model == name)
            missing[name] = f"{name} (for {wanted}): {error}"
            continue
        truth = truths.get(task, truth_name)
        make = partial(_published, Judge(truth_name, truth.labels, truth.pair_labels, None))
        for level in ("node", "edge"):
            able = [method for method in PAPER_METHODS if level in methods.get(method).levels]
            of_level = {**shared, "level": level}
            for row in judged_cells((name, None), task, able, seeds, of_level, make, out, worker, budget_s):
                rows.append(row)
                report(row)
    if rows:
        write(rows, out)
    return rows, list(missing.values())


def _published(judge: Judge, _model: Model) -> Judge:
    return judge


def paper_table(rows: Sequence[Row]) -> str:
    """Return our figures beside the published ones."""
    lines = [f"{'task':<14} {'method':<16} {'level':<5} {'AUC':>7} {'published':>10}  note"]
    for each in summarise(rows):
        pair = PUBLISHED.get(each.method, {}).get(each.task)
        published = "-" if pair is None else f"{pair[each.level == 'edge']:.3f}"
        # The published edge figures of the codes are over heads, by mentions; the others' over true edges.
        mentions, pairs = each.means["mention_auc"], each.means["pair_auc"]
        ours = each.means["auc"] if each.level == "node" else pairs if mentions is None else mentions
        shown = "-" if ours is None else f"{ours:.3f}"
        lines.append(f"{each.task:<14} {each.method:<16} {each.level:<5} {shown:>7} {published:>10}  {each.note}")
    return "\n".join(lines)
