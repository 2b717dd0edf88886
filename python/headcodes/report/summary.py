"""What the page shows of a run, and of many side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headcodes.circuit.circuit import Circuit
from headcodes.graph import numbered, parse_head, parse_part
from headcodes.report import curve_figures, figures
from headcodes.report.attention import MOST_TOKENS
from headcodes.report.codes import edge_notes, edge_values, node_notes, unique_codes
from headcodes.report.records import RunRecord

_N_TOP_IN_OVERVIEW = 3


def page_title(runs: Sequence[RunRecord]) -> str:
    """Return the page's title."""
    if len(runs) == 1:
        return f"{runs[0].model}, {runs[0].document['task']}"
    return f"{len(runs)} runs"


def _label(run: RunRecord) -> str:
    document = run.document
    return f"{run.model} · {document['task']} · {document['method']} · {_drawn(run)}"


def _drawn(run: RunRecord) -> str:
    n_seeds = len(run.document.get("seeds", ()))
    return f"mean of {n_seeds} seeds" if n_seeds else f"seed {run.document['seed']}"


def overview_row(index: int, run: RunRecord) -> dict[str, Any]:
    """Return a run's line in the overview."""
    document = run.document
    check = document["task_check"]
    return {
        "index": index,
        "label": _label(run),
        "model": run.model,
        "task": document["task"],
        "negative": document["negative"],
        "method": document["method"],
        "level": document["level"],
        "seed": run.seeds,
        "first_seed": document.get("seeds", [document["seed"]])[0],
        "share_right": check.get("share_right"),
        "top": list(run.circuit.nodes[:_N_TOP_IN_OVERVIEW]),
        "n_nodes": len(run.circuit.nodes),
        "dead_share": document.get("dead_share"),
        "summary": next((curve.summary for curve in run.curves if curve.summary), ""),
        "seconds": document["timings_s"].get("total"),
        "error": run.error,
    }


def overview_matrix(runs: Sequence[RunRecord]) -> dict[str, Any] | None:
    """Return models x tasks: how many runs, how well the model does the task, how far seeds agree; None if 1 x 1."""
    cells: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for run in runs:
        cells[run.model, run.document["task"]].append(run)
    models = list(dict.fromkeys(model for model, _ in cells))
    tasks = list(dict.fromkeys(task for _, task in cells))
    if len(cells) < 2:
        return None
    return {
        "tasks": tasks,
        "rows": [
            {"model": model, "cells": [_cell(cells.get((model, task), [])) for task in tasks]} for model in models
        ],
    }


def _cell(runs: Sequence[RunRecord]) -> dict[str, Any] | None:
    if not runs:
        return None
    shares = [run.document["task_check"].get("share_right") for run in runs if run.error is None]
    known = [share for share in shares if share is not None]
    return {
        "n": len(runs),
        "n_failed": sum(run.error is not None for run in runs),
        "share_right": float(np.mean(known)) if known else None,
    }


def run_summary(run: RunRecord) -> dict[str, Any]:
    """Return what the page shows of one run, as JSON values."""
    document = run.document
    kinds: dict[str, list[curve_figures.Curve]] = defaultdict(list)
    for curve in run.curves:
        kinds[curve.kind].append(curve)
    values = run.head_values
    heads = run.circuit.heads
    unique = unique_codes(run)
    values_of_edges = edge_values(run)
    return {
        "label": _label(run),
        "error": run.error,
        "shape": [run.circuit.n_layers, run.circuit.n_heads],
        "level": document["level"],
        "check": document["task_check"],
        "heads": {what: figures.heads_figure(its, what=what, chosen=heads) for what, its in values.items()},
        "chosen": [
            {
                "name": name,
                "values": _values_of(run, name, values),
                "codes": _codes_used(document, name),
                "unique": int(unique[head[0] * run.circuit.n_heads + head[1]])
                if unique is not None and (head := parse_head(name)) is not None
                else None,
            }
            for name in run.circuit.nodes
            if parse_part(name) is not None
        ],
        "positions": run.positions,
        "intervals": {row["head"]: [row["low"], row["high"]] for row in document.get("verification") or []},
        "edges": [
            [*edge, _finite(run.circuit.edge_scores.get(edge)), *(its.get(edge) for its in values_of_edges.values())]
            for edge in run.circuit.edges
        ],
        "edge_columns": list(values_of_edges),
        "seeds": _seeds_of(run),
        "circuit": figures.circuit_figure(run.circuit, node_notes(run), edge_notes(run)),
        "curves": {kind: curve_figures.curves_figure(curves) for kind, curves in kinds.items()},
        "timings": curve_figures.timings_figure(document["timings_s"]) if document["timings_s"] else None,
        "facts": run_facts(run),
        "command": run.command,
        "absent": _absent(run),
    }


def _values_of(run: RunRecord, name: str, values: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Return the numbers of a head, or those that an MLP has of them."""
    head = parse_head(name)
    if head is not None:
        return {what: _finite(its[head]) for what, its in values.items()}
    exact = {row["head"]: row["effect"] for row in run.document.get("verification") or []}
    known = {"score": run.circuit.node_scores.get(name), "exact effect": exact.get(name)}
    return {what: _finite(known.get(what)) for what in values}


def _codes_used(document: Mapping[str, Any], name: str) -> list[str] | None:
    """Return a confirmed head's commonest codes on clean and on corrupted prompts; None where there are none."""
    used = (document.get("codes_used") or {}).get(name)
    if used is None:
        return None
    sides = ([(code, share) for code, share in used[side]] for side in ("clean", "corrupt"))
    return [", ".join(f"{'none' if code < 0 else code} ({share:.0%})" for code, share in side[:2]) for side in sides]


def _absent(run: RunRecord) -> list[tuple[str, str | None]]:
    """Return what the page of a run lacks: why it is not there, and the command that makes it."""
    found: list[tuple[str, str | None]] = []
    if run.error is not None:
        return found
    if run.arrays.get("codes") is None:
        found.append(("No codes: this method gives heads none.", None))
    if (whole := run.document.get("whole_page")) is not None:
        why = "No texts of prompts and no attention: a scan's store keeps neither."
        found.append((f"{why} This writes a page with both, cell/page.html:", str(whole)))
    elif run.pairs is None:
        found.append(("No texts of prompts: there was no prompts.json beside the result.", None))
    elif not run.attention:
        why = "No attention: it is kept where a result is saved with its model, for prompts"
        found.append((f"{why} of at most {MOST_TOKENS} tokens.", "result.save(folder, model=model)"))
    if not run.curves:
        folder = "RUN" if whole is None else "cell"
        why = "No curves: no truth is published for this model and task. Find the causal one, then report again:"
        found.append((why, f"headcodes evaluate {folder}/circuit.json --curve --out {folder}/evaluation.json"))
    return found


def _seeds_of(run: RunRecord) -> dict[str, Any] | None:
    """Return every seed's scores of a run of several, and how far the circuits agree that they alone would give."""
    scores = run.arrays.get("head_scores_by_seed")
    if scores is None:
        return None
    top = max(1, len(run.circuit.heads))
    chosen = [set(Circuit.from_scores(its, top=top).nodes) for its in scores]
    return _agreement(dict(zip(run.document["seeds"], scores, strict=True)), chosen)


def _agreement(scores: Mapping[int, np.ndarray], chosen: Sequence[set[str]]) -> dict[str, Any]:
    names = sorted(set().union(*chosen))
    holds = np.array([[name in its for name in names] for its in chosen], np.float32)
    sizes = holds.sum(axis=1)
    overlap = 0.0  # added up over pairs, a row of them at a time: a store has thousands of seeds
    for i in range(len(chosen)):
        shared = holds[i + 1 :] @ holds[i]
        overlap += float((shared / np.maximum(1, sizes[i] + sizes[i + 1 :] - shared)).sum(dtype=np.float64))
    n_pairs = len(chosen) * (len(chosen) - 1) // 2
    return {
        "seeds": sorted(scores),
        "agreement": overlap / n_pairs if n_pairs else 1.0,
        "figure": curve_figures.seeds_figure(scores),
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


# ``pairs_proposed_by`` of result.json.
_PAIRS_BY = {
    "gradients": "their edges, by one backward pass, between the best heads; elsewhere by their heads' scores",
    "composition": "their weights and their heads' scores between the best heads; elsewhere by their heads' scores",
    "products": "the product of their heads' scores",
}


def run_facts(run: RunRecord) -> list[tuple[str, str]]:
    """Return what a run was, line by line; JSON has no order to rely on."""
    document = run.document
    bos = {True: "added", False: "not added"}.get(document.get("bos_added"), "unknown")  # type: ignore[arg-type]
    check = document["task_check"]
    method = str(document["method"])
    if (used := str(document.get("method_used", method))) != method:
        method += f" ({used})"
    facts = {
        "model": document["model"],
        "revision": document.get("revision"),
        "task": f"{document['task']} ({document['negative']} negatives)",
        "layers without attention heads": numbered(
            layer for layer in document.get("layers_without_heads") or () if isinstance(layer, int)
        ),
        "method": f"{method}, {document['level']} level",
        "default took no gradients": document.get("fallback"),
        "pairs of heads are scored by": _PAIRS_BY.get(str(document.get("pairs_proposed_by"))),
        "not patched": document.get("unverified"),
        "seed": document["seed"],
        "seeds of the method": run.seeds if "seeds" in document else None,
        "codes": "of the first seed" if "seeds" in document and "codes" in run.arrays else None,
        "false-discovery rate asked for": document.get("fdr"),
        "permutations": document.get("n_permutations"),
        "selected by at least": document.get("stable"),
        "draws of the pairs": document.get("n_resamples"),
        "prompt pairs": document.get("n_prompts", check.get("n_pairs")),
        "trained on": None if "n_train" not in document else f"{document['n_train']} prompts (as asked for)",
        "positions": document.get("positions"),
        "beginning-of-sequence token": f"{bos} (asked for: {document.get('bos', 'unknown')})",
        "number type": document.get("dtype"),
        "device": document.get("device"),
        "seed of the prompts": document.get("prompt_seed"),
        "threads": document.get("threads"),
        "encoder": document.get("backend"),
        "rows without an active latent": None
        if document.get("dead_share") is None
        else f"{document['dead_share']:.1%}",
        **{f"version of {name}": version for name, version in document["versions"].items()},
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def seed_groups(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return, for runs that differ in their seed only, their scores side by side and how far their circuits agree."""
    groups: dict[tuple[Any, ...], dict[int, tuple[int, RunRecord]]] = defaultdict(dict)
    for index, run in enumerate(runs):
        if run.error is None:
            groups[run.group].setdefault(int(run.document["seed"]), (index, run))
    found = []
    for members in groups.values():
        if len(members) < 2:
            continue
        scores = {seed: run.head_values["score"] for seed, (_, run) in members.items()}
        agreement = _agreement(scores, [set(run.circuit.nodes) for _, run in members.values()])
        found.append({"runs": [index for index, _ in members.values()], **agreement})
    return found
