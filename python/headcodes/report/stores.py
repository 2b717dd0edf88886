"""Reading the cells of a scan's store."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headcodes.circuit.circuit import Circuit
from headcodes.errors import HeadcodesError
from headcodes.files import reading
from headcodes.report.curves import published_curves
from headcodes.report.records import RunRecord, natural, option_words, with_names_of_today
from headcodes.settings import SETTINGS, SHARED, parse_verify


def read_store(folder: Path | str, top: int = 20) -> list[RunRecord]:
    """Read the cells of a scan's store, failed ones too, sorted by what was asked; a store keeps no prompts' texts.

    Raises:
        HeadcodesError: it is no store, or a file of its arrays is damaged.
    """
    from headcodes.store.cells import load_store

    rows = load_store(folder).to_pylist()
    asked = ("model", "revision", "task", "negative", "method", "level")
    rows.sort(key=lambda row: ([natural(str(row[name])) for name in asked], row["seed"]))
    runs = []
    for row in rows:
        path = Path(folder) / "cells" / f"{row['identity']}.parquet"
        with reading("a cell of a store must be whole", path, "Remove the file and run the scan again."):
            runs.append(_from_row(row, Path(folder), top))
    return runs


def _from_row(row: Mapping[str, Any], folder: Path, top: int) -> RunRecord:
    from headcodes.store.cells import read_arrays

    arrays = with_names_of_today(read_arrays(folder, row))
    failure = (row["error"] or "no reason given") if row["status"] != "done" else None
    # A cell that failed has no scores, and perhaps no shape.
    shape = (row["n_layers"], row["n_heads"]) if failure is None else (1, 1)
    known = row["head_scores"] if failure is None else [0.0]
    if known is None or None in shape or min(shape) < 1 or len(known) != shape[0] * shape[1]:
        raise ValueError(f"{len(known or ())} scores of {shape[0]} layers of {shape[1]} heads")
    scores = np.array(known, dtype=np.float64).reshape(shape)
    check = ("n_pairs", "share_right", "positive_logit_diff", "negative_logit_diff")
    if lacking := [name for name in ("model", "task", "method", "level", "seed") if row[name] is None]:
        raise ValueError(f"a cell without {lacking[0]}")
    numbers = [row[name] for name in (*check, "dead_share") if row[name] is not None]
    if not np.isfinite([*numbers, *dict(row["timings_s"] or ()).values()]).all():
        raise ValueError("not every number of the cell is finite")
    document = {
        **{name: value for name, value in row.items() if value is not None and name in _FROM_ROW},
        "negative": row["negative"] or "",
        "head_scores": scores.ravel().tolist(),
        "task_check": {name: row[name] for name in check if row[name] is not None},
        "timings_s": dict(row["timings_s"] or ()),
        "versions": dict(row["versions"] or ()),
        "command": _scan_command(row),
        "whole_page": _page_command(row),
    }
    if row["circuit"]:
        circuit = _confirmed(row, shape)
        effects = [{"head": name, **its} for name, its in circuit.effects.items() if "->" not in name]
        document |= {"verify": parse_verify(row["verify"] or ""), "verification": effects}
    else:
        circuit = Circuit.from_scores(
            _stable(scores, row),
            top=top,
            pair_scores=arrays.get("pair_scores"),
            model=row["model"],
            task=row["task"],
            method=row["method"],
            d_model=row["d_model"],
            parallel_attn_mlp=bool(row["parallel_attn_mlp"]),
        )
    record = RunRecord(
        document=document,
        circuit=circuit,
        arrays={name: arrays[name] for name in ("codes", "scored_prompts") if name in arrays},
        curves=[] if failure else published_curves(row["model"], row["task"], row["method"], scores),
        error=failure,
    )
    _ = record.head_values  # numbers of the wrong count are found here, not while drawing
    return record


def _confirmed(row: Mapping[str, Any], shape: tuple[int, int]) -> Circuit:
    """Return the circuit whose heads and paths were patched exactly in a cell."""
    try:
        circuit = Circuit.from_dict(json.loads(row["circuit"]))
    except HeadcodesError as error:
        raise ValueError(f"its circuit: {error.got}") from error
    if (circuit.n_layers, circuit.n_heads, circuit.method) != (*shape, row["method"]) or not set(circuit.nodes) <= set(
        circuit.effects
    ):
        raise ValueError("a circuit that is not of this cell")
    return circuit


def _stable(scores: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    """Return the scores of heads that draws of the pairs selected often enough, where a cell was asked for that."""
    if not row["selection_frequency"]:
        return scores
    drawn = [np.array(row[name], dtype=np.float64).reshape(scores.shape) for name in _DRAWN]
    if row["stable"] is None or not np.isfinite(drawn).all():
        raise ValueError("scores of draws that are not finite, or without the share asked for")
    return np.where(drawn[0] >= row["stable"], scores, 0.0)


_DRAWN = ("selection_frequency", "score_low", "score_high")
_FROM_ROW = {*SETTINGS, "prompt_seed", "bos_added", "backend", "n_layers", "n_heads", "mention_scores", "dead_share"}
_FROM_ROW |= {"stable", "n_resamples", "layers_without_heads", *_DRAWN, "unverified"}
_FROM_ROW |= {"method_used", "fallback", "pairs_proposed_by"}


def _scan_command(row: Mapping[str, Any]) -> str:
    """Return the scan of this one cell."""
    model = row["model"] if row["revision"] is None else f"{row['model']}@{row['revision']}"
    # A cell that failed early, and one of a prompt file, names no negative.
    task = row["task"] if row["prompts"] or not row["negative"] else f"{row['task']}:{row['negative']}"
    lists = {"models": model, "tasks": task, "methods": row["method"], "seeds": row["seed"]}
    words = ["headcodes", "scan", *option_words(lists, *lists)]
    words += option_words(row, *SHARED, "prompt_seed", "stable", "verify")
    return shlex.join(map(str, [*words, "--store", "store"]))


# Of the settings that cells share, those that are not of the prompts alone.
_OF_A_RUN = tuple(name for name in SHARED if name != "n_prompts")


def _page_command(row: Mapping[str, Any]) -> str:
    """Return what makes this cell again with its prompts and attention: a command line, or Python where none can."""
    if row["prompts"] or row["seed"] == row["prompt_seed"]:
        words = ["headcodes", "discover", *option_words(row, "model", "revision")]
        if row["prompts"]:
            words += ["--prompts", row["task"]]
        else:
            words += option_words({**row, "negative": row["negative"] or None}, "task", "negative", "n_prompts")
        words += option_words(row, "method", "seed", *_OF_A_RUN, "stable", "verify")
        return shlex.join(map(str, [*words, "--out", "cell"]))
    # `discover --seed` is of prompts and method at once; a scan keeps the two apart.
    build = {"n": row["n_prompts"], "seed": row["prompt_seed"], "negative": row["negative"]}
    run = {name: row[name] for name in ("method", "seed", "level", "n_train", "positions", "bos", "threads", "stable")}
    verify = parse_verify(row["verify"] or "off")
    chat = f"headcodes.prompts.chat.render_chat(pairs, model.tokenizer, {row.get('system') or None!r})"
    if row.get("chat"):
        run["bos"] = "no" if run["bos"] == "auto" else run["bos"]

    def written(values: Mapping[str, Any]) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in values.items() if value is not None)

    load = written({name: row.get(name) for name in ("revision", "projection", "device", "dtype")})
    return "\n".join(
        [
            "import headcodes",
            f"model = headcodes.load_model({row['model']!r}, {load})",
            f"pairs = headcodes.tasks.get({row['task']!r}).build(model.tokenizer, {written(build)})",
            *[f"import headcodes.prompts.chat\npairs = {chat}"] * bool(row.get("chat")),
            f"headcodes.discover(model, pairs, {written(run)}, {verify=}).save('cell', model=model)",
        ]
    )
