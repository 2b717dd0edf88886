"""Heads along the checkpoints of one model, and across the tasks of one model: what moves, what is shared.

Runs that differ in nothing but their seeds, of the method or of the prompts, are draws of one thing: a score is then
the mean over them, and a consensus the share of them whose circuit has the head.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.graph import head_name
from headcodes.report.figures import CATEGORIES, SEQUENTIAL, Figure, colorscale, plain
from headcodes.report.records import RunRecord

if TYPE_CHECKING:
    from jaxtyping import Float

# Groups on a page, heads with a line and heads with a row.
MOST_GROUPS = 24
MOST_LINES = 10
MOST_ROWS = 40
_NUMBERS = re.compile(r"\d{1,18}")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up")


def checkpoint_groups(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return, for every model with several checkpoints, each head's score along them.

    Checkpoints are the revisions of a model, in the order of the numbers in their names; or folders whose last names
    differ in a number alone: ``run/step-100``, ``run/step-200``.
    """
    groups: dict[tuple[Hashable, ...], dict[str, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.error is None:
            model, checkpoint = _checkpoint(run)
            groups[(*_asked(run, "task", "negative"), model, _shape(run))][checkpoint].append(run)
    found: list[dict[str, Any]] = []
    for (method, level, stable, task, negative, series, _), by_checkpoint in groups.items():
        if len(by_checkpoint) < 2 or len(found) == MOST_GROUPS:
            continue
        names = sorted(by_checkpoint, key=_natural)
        scores, shares = _means([by_checkpoint[name] for name in names])
        best = _best(scores.max(0), MOST_ROWS)
        heads = [head_name(*divmod(int(i), by_checkpoint[names[0]][0].circuit.n_heads)) for i in best]
        about = f"{series} · {task} ({negative}) · " + _how(method, level, stable)
        found.append(
            {
                "label": about,
                "checkpoints": names,
                "n_runs": [len(by_checkpoint[name]) for name in names],
                "heads": heads,
                "scores": scores[:, best].T,
                "shares": shares[:, best].T,
                "lines": lines_figure(
                    names,
                    heads[:MOST_LINES],
                    scores[:, best[:MOST_LINES]].T,
                    _interval([by_checkpoint[name] for name in names], best[:MOST_LINES]),
                ),
                "matrix": matrix_figure(names, heads, scores[:, best].T, shares[:, best].T, "checkpoint", "score"),
            }
        )
    return found


def task_groups(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return, for every model with several tasks, which heads its tasks share and which belong to one.

    A head belongs to a task where at least half of that task's runs have it in their circuit. Its specificity is tau of
    its scores, each task's divided by its largest: sum over tasks of (1 - x / max x) / (tasks - 1), 0 where all are
    alike and 1 where only one task has any (Yanai et al. 2005, doi 10.1093/bioinformatics/bti042).
    """
    groups: dict[tuple[Hashable, ...], dict[str, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.error is None:
            document = run.document
            task = f"{document['task']} ({document['negative']})" if document["negative"] else document["task"]
            groups[(*_asked(run), run.model, _shape(run))][task].append(run)
    found: list[dict[str, Any]] = []
    for (method, level, stable, model, _), by_task in groups.items():
        if len(by_task) < 2 or len(found) == MOST_GROUPS:
            continue
        names = sorted(by_task)
        scores, shares = _means([by_task[name] for name in names])
        largest = scores.max(1, keepdims=True)
        scaled = np.clip(scores / np.where(largest > 0, largest, 1.0), 0.0, None)
        # Heads that most tasks agree on come first; of equally many, those of larger score.
        order = np.lexsort((-scaled.max(0), -(shares >= 0.5).sum(0)))
        best = [int(i) for i in order if shares[:, i].max() >= 0.5][:MOST_ROWS]
        heads = [head_name(*divmod(i, by_task[names[0]][0].circuit.n_heads)) for i in best]
        tau = specificity(scaled)
        found.append(
            {
                "label": f"{model} · " + _how(method, level, stable),
                "tasks": names,
                "n_runs": [len(by_task[name]) for name in names],
                "heads": heads,
                "of": [[names[t] for t in range(len(names)) if shares[t, i] >= 0.5] for i in best],
                "specificity": [float(tau[i]) for i in best],
                "matrix": matrix_figure(names, heads, shares[:, best].T, scaled[:, best].T, "task", "consensus"),
            }
        )
    return found


def specificity(scores: Float[np.ndarray, "n_task n_head"]) -> Float[np.ndarray, " n_head"]:
    """Return tau of every head's scores over tasks (``task_groups``); 0 for a head without any."""
    most = scores.max(0)
    tau: Float[np.ndarray, " n_head"] = (1 - scores / np.where(most > 0, most, 1.0)).sum(0) / (len(scores) - 1)
    return np.where(most > 0, tau, 0.0)


def lines_figure(
    names: Sequence[str],
    heads: Sequence[str],
    scores: Float[np.ndarray, "n_head n_checkpoint"],
    interval: Float[np.ndarray, "end n_head n_checkpoint"] | None = None,
) -> Figure:
    """Draw a line a head along the checkpoints, with both ends of its scores' interval where there is one."""
    bars: list[Figure] = [{} for _ in heads]
    if interval is not None:
        below, above = np.clip([scores - interval[0], interval[1] - scores], 0.0, None).tolist()
        look = {"symmetric": False, "thickness": 1, "width": 3}
        bars = [
            # Half transparent: the bars of ten heads stand at one place.
            {"error_y": {"array": a, "arrayminus": b, "color": CATEGORIES[i % len(CATEGORIES)] + "80", **look}}
            for i, (a, b) in enumerate(zip(above, below, strict=True))
        ]
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": head,
                "x": [plain(name, 40) for name in names],
                "y": its.tolist(),
                **bars[i],
                "line": {"color": CATEGORIES[i % len(CATEGORIES)], "dash": _DASHES[i % len(_DASHES)], "width": 2},
                "marker": {"symbol": _SYMBOLS[i % len(_SYMBOLS)], "size": 7},
                "hovertemplate": f"{head}, %{{x}}: %{{y:.4~g}}<extra></extra>",
            }
            for i, (head, its) in enumerate(zip(heads, scores, strict=True))
        ],
        "layout": {
            "xaxis": {"title": {"text": "checkpoint"}, "type": "category"},
            "yaxis": {"title": {"text": "score"}, "zeroline": False},
            "height": 400,
            "margin": {"l": 60, "r": 10, "t": 10, "b": 60},
            "legend": {"orientation": "h", "y": 1.16},
        },
    }


def _interval(
    columns: Sequence[Sequence[RunRecord]], heads: Sequence[int]
) -> Float[np.ndarray, "end n_head n_checkpoint"] | None:
    """Return the ends of scores' intervals over draws of the pairs; None unless every checkpoint is one run with them:
    the ends of several runs say nothing of their mean."""
    values = [runs[0].head_values for runs in columns]
    if any(len(runs) > 1 for runs in columns) or not all("score: low" in each for each in values):
        return None
    ends = [[each[f"score: {end}"].ravel()[heads] for each in values] for end in ("low", "high")]
    return np.swapaxes(ends, 1, 2)


def matrix_figure(
    names: Sequence[str],
    heads: Sequence[str],
    values: Float[np.ndarray, "n_head n_column"],
    beside: Float[np.ndarray, "n_head n_column"],
    column: str,
    what: str,
) -> Figure:
    """Draw heads by checkpoints or tasks; scores by the root of their size, as in the heat map of heads.

    Args:
        values: what colours show.
        beside: what hovering tells as well.
        column: what a column is.
        what: "score", whose consensus is told beside it, or "consensus", beside which scores are told.
    """
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    shown = np.sqrt(np.clip(values, 0.0, None) / largest) if what == "score" else values
    bar: Figure = {"title": {"text": what, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    if what == "score":
        shares = (0, 0.1, 0.25, 0.5, 1)
        bar |= {
            "tickvals": [share**0.5 for share in shares],
            "ticktext": [f"{share * largest:.3g}" for share in shares],
        }
    told = {
        "score": "in the circuit of %{customdata[1]:.0%} of runs",
        "consensus": "score %{customdata[1]:.0%} of the largest in the task",
    }
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [plain(name, 40) for name in names],
                "y": list(heads),
                "z": shown.astype(np.float32),
                "customdata": np.stack([values, beside], -1).astype(np.float32),
                "hovertemplate": f"%{{y}}, %{{x}}<br>{what} %{{customdata[0]:.4~g}}<br>{told[what]}<extra></extra>",
                "colorscale": colorscale(SEQUENTIAL),
                "zmin": 0.0,
                "zmax": 1.0,
                "xgap": 1,
                "ygap": 1,
                "colorbar": bar,
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": column}, "type": "category", "showgrid": False, "ticks": ""},
            "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False, "ticks": "", "dtick": 1},
            "height": 130 + 18 * max(1, len(heads)),
            "margin": {"l": 70, "r": 10, "t": 10, "b": 70},
        },
    }


def _checkpoint(run: RunRecord) -> tuple[str, str]:
    """Return what a run's checkpoints share, and which of them this is."""
    model, revision = str(run.document["model"]), run.document.get("revision")
    if revision:
        return model, str(revision)
    folder, slash, name = model.rstrip("/").rpartition("/")
    if slash and (numbers := list(_NUMBERS.finditer(name))):
        last = numbers[-1]
        return f"{folder}/{name[: last.start()]}N{name[last.end() :]}", name
    return model, ""


def _natural(name: str) -> tuple[list[int], str]:
    return [int(number) for number in _NUMBERS.findall(name)][-1:], name


def _asked(run: RunRecord, *more: str) -> tuple[Hashable, ...]:
    return tuple(run.document.get(name) for name in ("method", "level", "stable", *more))


def _how(method: Hashable, level: Hashable, stable: Hashable) -> str:
    edges = ", edges" if level == "edge" else ""
    return f"{method}{edges}" + ("" if stable is None else f", selected in {stable:.0%} of draws")


def _shape(run: RunRecord) -> tuple[int, int]:
    return run.circuit.n_layers, run.circuit.n_heads


def _means(
    columns: Sequence[Sequence[RunRecord]],
) -> tuple[Float[np.ndarray, "n_column n_head"], Float[np.ndarray, "n_column n_head"]]:
    """Return the mean score of every head over a column's runs, and the share of them whose circuit has it."""
    scores = [np.mean([run.head_values["score"].ravel() for run in runs], 0) for runs in columns]
    shares = [np.mean([run.circuit.head_mask.ravel() for run in runs], 0) for runs in columns]
    return np.nan_to_num(np.stack(scores)), np.stack(shares)


def _best(scores: Float[np.ndarray, " n_head"], most: int) -> list[int]:
    order = np.argsort(-scores, kind="stable")[:most]
    return [int(i) for i in order if scores[i] > 0]
