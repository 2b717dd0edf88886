"""Judging a cell of a scan: its scores against a truth, and the model's faithfulness to the circuits they give."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes import metrics, tasks
from headcodes.comparison.rows import SCHEMA, Row, Status
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.evaluation.areas import edge_cpr_cmd, head_cpr_cmd
from headcodes.evaluation.faithfulness import curve
from headcodes.evaluation.paths import path_truth
from headcodes.files import atomic_write, checksum
from headcodes.graph import Edges
from headcodes.interventions.patch import N_LARGEST, causal_truth, n_of_largest_effect
from headcodes.interventions.reads import graph_of
from headcodes.models import planted
from headcodes.prompts.tokens import TokenPairs, tokenize
from headcodes.store.cells import read_arrays

if TYPE_CHECKING:
    from headcodes.models.model import Model

# Seeds of prompts that judge; methods get the seeds from 0 up.
TRUTH_SEED = 10_000


@dataclass(frozen=True)
class Judge:
    """What a task's cells are judged by.

    Attributes:
        name: of the truth. labels: which heads are in it. pair_labels: which pairs, where it knows, and known_pairs: of
            which it does (all that point forward where None).
        tokens: prompts for faithfulness, other ones than the methods get; None where it is not to be measured.
    """

    name: str
    labels: np.ndarray
    pair_labels: np.ndarray | None
    tokens: TokenPairs | None
    known_pairs: np.ndarray | None = None

    def key(self) -> str:
        """Return what differs as soon as a judgement may: the truth, and the prompts for faithfulness."""
        both = (self.pair_labels, self.known_pairs)
        pairs = [None if mask is None else checksum(np.packbits(mask).tobytes()) for mask in both]
        prompts = None if self.tokens is None else [self.tokens.clean, self.tokens.corrupt]
        return checksum(json.dumps([self.name, self.labels.tolist(), pairs, prompts]).encode())[:8]


def make_judge(
    model: Model,
    task: str,
    *,
    top: int | None = None,
    n_pairs: int = 32,
    n_faithfulness: int = 8,
    with_faithfulness: bool = True,
    with_paths: bool = False,
) -> Judge:
    """Return the planted truth of a planted model, else the causal truth: the ``top`` heads of largest |effect|.

    Args:
        top: None: 20, but no more than half of the model's heads; the judge's name says how many, where fewer.
        with_paths: patch the paths between these heads exactly too (``evaluation.paths.path_truth``), to judge pairs.

    Raises:
        HeadcodesError: a planted model of another task; a truth that cannot be made.
    """
    known = planted.load(model.name) if planted.is_planted(model.name) else None
    if known is not None and known.task.id != task:
        raise HeadcodesError(f"tasks of {model.name} must be {known.task.id}", task, f"Choose --tasks {known.task.id}.")
    tokens = tokenize(tasks.get(task).build(model.tokenizer, n=2 * n_pairs, seed=TRUTH_SEED), model.tokenizer)
    some = tokens.subset(range(min(n_faithfulness, len(tokens)))) if with_faithfulness else None
    if known is not None:
        return Judge("planted", known.truth.labels, known.truth.pair_labels, some)
    truth = causal_truth(model, tokens, pairs=n_pairs)
    n_largest = n_of_largest_effect(top, int(model.real_heads.sum()))
    labels = truth.labels(n_largest)
    masks: list[np.ndarray | None] = [None, None]
    if with_paths:
        found = path_truth(model, tokens, [(int(layer), int(head)) for layer, head in np.argwhere(labels)])
        confirmed = set(found.confirmed())
        number = {name: place for place, name in enumerate(model.components)}
        inside, known_pairs = (np.zeros((len(number), len(number)), dtype=bool) for _ in range(2))
        for source, receiver in found.edges:
            known_pairs[number[source], number[receiver]] = True
            inside[number[source], number[receiver]] = (source, receiver) in confirmed
        masks = [inside, known_pairs]
    name = f"causal, {len(truth.effects)} pairs"
    if top is None and n_largest < N_LARGEST:
        name += f", {n_largest} heads"
        warnings.warn(
            f"the truth is the {n_largest} heads of largest effect, half of those of {model.name},"
            f" in place of {N_LARGEST}",
            HeadcodesWarning,
            stacklevel=2,
        )
    return Judge(name, labels, masks[0], some, masks[1])


_FAILURES: dict[str, Status] = {"budget": "over budget", "refused": "not possible", "error": "failed"}


def judged_row(cell: Mapping[str, Any], model: Model, judge: Judge, out: Path) -> Row:
    """Return the row of a comparison that a store's row becomes; a judgement is kept and made once.

    Args:
        cell: the row of the store in ``out``.
        out: the store; judgements are kept in its folder "judged".
    """
    if cell["status"] != "done":
        # One line, without the place in the code that a store's row names.
        note = str(cell["error"]).splitlines()[0]
        return Row(**about(cell), truth=judge.name, status=_FAILURES[cell["failure"] or "error"], note=note)
    path = out / "judged" / f"{cell['identity']}-{judge.key()}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Row(**{field.name: kept[field.name] for field in fields(Row)})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        row = _judge(cell, model, judge, out)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"schema": SCHEMA, "kind": "judged-cell", **asdict(row)}), encoding="utf-8")
    return row


def about(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return what names a cell in the rows of a comparison."""
    names = ("task", "method", "level", "seed")
    model = cell["model"] if cell["revision"] is None else f"{cell['model']}@{cell['revision']}"
    return {"model": model} | {name: cell[name] for name in names} | {"n_pairs": cell["n_prompts"]}


def _judge(cell: Mapping[str, Any], model: Model, judge: Judge, out: Path) -> Row:
    arrays = read_arrays(out, cell)
    shape = cell["n_layers"], cell["n_heads"]
    scores = np.array(cell["head_scores"], dtype=np.float64).reshape(shape)
    real = model.real_heads
    found: dict[str, Any] = {
        "seconds": dict(cell["timings_s"])["total"],
        "peak_bytes": max(0, cell["peak_memory_bytes"] - cell["held_memory_bytes"]),
        "auc": metrics.roc_auc(scores[real], judge.labels[real]),
        "ap": metrics.average_precision(scores[real], judge.labels[real]),
        "labels": judge.labels.tolist(),
        "scores": scores.tolist(),
    }
    if cell["mention_scores"] is not None:
        found["mention_auc"] = metrics.mention_auc(cell["mention_scores"], judge.labels)
    if "pair_scores" in arrays and judge.pair_labels is not None:
        layer = np.arange(len(judge.pair_labels)) // shape[1]
        asked = layer[:, None] < layer[None, :] if judge.known_pairs is None else judge.known_pairs
        pairs, inside = arrays["pair_scores"][asked], judge.pair_labels[asked]
        if 0 < inside.sum() < len(inside):
            found |= {"pair_auc": metrics.roc_auc(pairs, inside), "pair_ap": metrics.average_precision(pairs, inside)}
    if judge.tokens is not None and judge.tokens.equal_lengths:
        edges = Edges.of(graph_of(model), arrays["edge_scores"]) if "edge_scores" in arrays else None
        signed = arrays.get("signed_scores", scores)
        found |= faithfulness(model, judge.tokens, scores, signed if cell["level"] == "node" else edges)
    return Row(**about(cell), truth=judge.name, status="ok", **found)


def faithfulness(
    model: Model, tokens: TokenPairs, scores: np.ndarray, signed: np.ndarray | Edges | None
) -> dict[str, Any]:
    """Return sizes and faithfulness of circuits of the best heads, and CPR and CMD; a note for what cannot be made.

    Args:
        model: whose faithfulness to circuits is measured.
        tokens: pairs, each of equal length.
        scores: of all heads [n_layers, n_heads].
        signed: what CPR and CMD order: signed scores of all heads, or of all edges; None for no areas.
    """
    found: dict[str, Any] = {}
    try:
        line = curve(model, tokens, scores, n_random=0)
        found |= {"sizes": line.sizes, "faithfulness": line.faithfulness}
        if signed is None:
            return found
        if isinstance(signed, Edges):
            areas = edge_cpr_cmd(model, tokens, signed)
        else:
            areas = head_cpr_cmd(model, tokens, signed)
        found |= {"cpr": areas["cpr"], "cmd": areas["cmd"]}
    except HeadcodesError as error:
        found["note"] = f"no CPR and CMD: {error}"
    return found
