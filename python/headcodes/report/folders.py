"""Reading the folders that `discover --out` writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headcodes.circuit.circuit import Circuit
from headcodes.errors import HeadcodesError
from headcodes.files import checked, read_json, reading, regular
from headcodes.prompts.pairs import PromptPairs
from headcodes.report.attention import load_attention
from headcodes.report.curves import curves_of_evaluation, published_curves
from headcodes.report.records import ARRAYS, RunRecord, with_names_of_today
from headcodes.report.stores import read_store
from headcodes.settings import check_seeds


def read_folder(folder: Path | str) -> RunRecord:
    """Read a folder that ``Result.save`` wrote.

    An evaluation.json beside the result (``Evaluation.as_dict``) adds causal effects and curves against its truth;
    without one, published truths of the same model and task are taken.

    Raises:
        HeadcodesError: there is no result.json, or a file is damaged; the message names the file.
    """
    from headcodes.report.schema import RunFile

    folder = Path(folder)
    path = folder / "result.json"
    document = read_json(path, "the result of a run", "Give a folder that `headcodes discover --out` wrote.")
    checked(RunFile, document, str(path), "Write the run again.")
    must = "the files of a run must belong together and be whole"
    with reading(must, folder, "Write the run again with `headcodes discover --out`."):
        return _from_folder(folder, document)


def _from_folder(folder: Path, document: Mapping[str, Any]) -> RunRecord:
    from safetensors.numpy import load_file

    from headcodes.report.schema import EvaluationFile

    scores = folder / "scores.safetensors"
    stored = with_names_of_today(load_file(regular(scores))) if scores.exists() else {}
    arrays = {name: stored[name] for name in ARRAYS if name in stored}
    prompts, judged = folder / "prompts.json", folder / "evaluation.json"
    shape = document["n_layers"], document["n_heads"]
    scores_of_heads = np.array(document["head_scores"], dtype=np.float64).reshape(shape)
    circuit = Circuit.from_json(folder / "circuit.json")
    if judged.exists():
        mend = "Write it again with `headcodes evaluate --out`."
        evaluation = read_json(judged, "an evaluation", mend)
        checked(EvaluationFile, evaluation, str(judged), mend)
        about = evaluation["circuit"]
        if (about["method"], about["n_heads_in_circuit"]) != (circuit.method, len(circuit.heads)):
            raise ValueError("evaluation.json is of another circuit than circuit.json")
        curves = curves_of_evaluation(evaluation, document["method"], scores_of_heads)
        if "head_effects" in (evaluation["truth"] or {}):
            arrays["causal_effects"] = np.array(evaluation["truth"]["head_effects"], dtype=np.float64)
    else:
        curves = published_curves(document["model"], document["task"], document["method"], scores_of_heads)
    record = RunRecord(
        document=document,
        circuit=circuit,
        arrays=arrays,
        pairs=PromptPairs.from_json(prompts) if prompts.exists() else None,
        attention=load_attention(folder),
        curves=curves,
    )
    n_component = document["n_layers"] * document["n_heads"]
    if (circuit.n_layers, circuit.n_heads) != shape:
        raise ValueError("circuit.json and result.json are of models of different shapes")
    if circuit.method != document["method"] or circuit.as_lists() != document["circuit"]:
        raise ValueError("circuit.json and result.json are of different runs")
    if "head_scores" in stored and not np.array_equal(stored["head_scores"], scores_of_heads):
        raise ValueError("scores.safetensors and result.json are of different runs")
    if record.pairs is not None and (record.pairs.task, record.pairs.negative) != (
        document["task"],
        document["negative"],
    ):
        raise ValueError("prompts.json and result.json are of different runs")
    _ = record.head_values, record.positions  # numbers of the wrong kind or count are found here, not while drawing
    codes = arrays.get("codes")
    for name, array in arrays.items():
        if name.startswith("pair_") and array.shape != (n_component, n_component):
            raise ValueError(f"{name} have shape {array.shape} for {n_component} heads")
    n_seeds = len(check_seeds(document["seeds"])) if "seeds" in document else 0
    by_seed = arrays.get("head_scores_by_seed")
    if by_seed is not None and by_seed.shape != (n_seeds, *shape):
        raise ValueError(f"scores by seed have shape {by_seed.shape} for {n_seeds} seeds")
    if by_seed is not None and not np.isfinite(by_seed).all():
        raise ValueError("not every score by seed is a finite number")
    if codes is not None and (codes.ndim != 2 or codes.shape[1] != n_component):
        raise ValueError(f"codes have shape {codes.shape} for {n_component} heads")
    if codes is not None and record.pairs is not None and len(codes) != 2 * len(record.pairs):
        raise ValueError(f"{len(codes)} rows of codes for {len(record.pairs)} prompt pairs")
    if codes is not None and len(arrays.get("scored_prompts", codes)) != len(codes):
        raise ValueError(f"{len(arrays['scored_prompts'])} marks of scored prompts for {len(codes)} rows of codes")
    return record


def read_runs(sources: Iterable[RunRecord | Path | str]) -> list[RunRecord]:
    """Read every run that ``sources`` name, in order.

    A source is a record, the folder of a run, a folder of such folders (taken in the order of their names), or a
    scan store.

    Raises:
        HeadcodesError: a source is none of these, or there is no run at all.
    """
    runs: list[RunRecord] = []
    for source in sources:
        if isinstance(source, RunRecord):
            runs.append(source)
            continue
        folder = Path(source)
        # A folder whose name begins with a dot is still being written.
        inner = sorted(path.parent for path in folder.glob("[!.]*/result.json"))
        if (folder / "cells").is_dir():
            runs += read_store(folder)
        elif (folder / "result.json").exists() or not inner:
            runs.append(read_folder(folder))
        else:
            runs += [read_folder(path) for path in inner]
    if not runs:
        raise HeadcodesError("a report must show at least one run", "none", "Name the folders of runs.")
    return runs
