"""What a report shows of one run: read from a result in memory, a folder of ``Result.save``, or a scan store."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.circuit import Circuit, parse_head
from headcodes.errors import HeadcodesError
from headcodes.prompts import PromptPairs
from headcodes.report.attention import AttentionPattern, load_attention
from headcodes.report.curves import curves_of_evaluation, published_curves
from headcodes.report.figures import Curve
from headcodes.seeds import check_seeds

if TYPE_CHECKING:
    from headcodes.result import Result

# What a reader is told of several seeds: of heads and of pairs.
SEED_LABELS = ("spread", "consensus")
# Name in result.json -> what a reader is told, in the order of the page's menu.
_PER_HEAD = {
    "head_scores": "score",
    "mention_scores": "mention score",
    "p_values": "p-value",
    "q_values": "q-value",
    "head_spread": SEED_LABELS[0],
    "head_consensus": SEED_LABELS[1],
}
_ARRAYS = ("codes", "judged", "pair_p_family", "pair_q_values", "head_scores_by_seed", "pair_spread", "pair_consensus")
_NUMBER, _TEXT = (int, float), (str,)
_REQUIRED: dict[str, tuple[type, ...]] = {
    "model": _TEXT,
    "task": _TEXT,
    "negative": _TEXT,
    "method": _TEXT,
    "level": _TEXT,
    "seed": (int,),
    "n_layers": (int,),
    "n_heads": (int,),
    "head_scores": (list,),
    "circuit": (dict,),
    "task_check": (dict,),
    "timings_s": (dict,),
    "versions": (dict,),
}
# Each of these may be missing, or null.
_OPTIONAL: dict[str, tuple[type, ...]] = {
    "revision": _TEXT,
    "dtype": _TEXT,
    "positions": _TEXT,
    "bos_added": (bool,),
    "n_prompts": (int,),
    "n_train": (int,),
    "dead_share": _NUMBER,
}


@dataclass(frozen=True)
class RunRecord:
    """One run, as a report needs it.

    Attributes:
        document: the object that ``--json`` prints (docs/result-json.md).
        circuit: the chosen heads and edges.
        arrays: ``codes`` int32 [n_prompt, n_component] and ``judged`` bool [n_prompt], clean prompts first, as in
            scores.safetensors; ``pair_p_family`` and ``pair_q_values`` [n_component, n_component], where pairs were
            tested; ``head_scores_by_seed`` [n_seed, n_layers, n_heads], ``pair_spread`` and ``pair_consensus``
            [n_component, n_component], where several seeds were asked for; ``causal_effects``, a number a head, where
            every head was patched.
        pairs: the prompts, None where they were not kept.
        attention: attention patterns of chosen heads on example prompts.
        curves: curves against a truth, or over circuit size.
        error: why a cell of a scan has no result; everything else is then as empty as it can be.
    """

    document: Mapping[str, Any]
    circuit: Circuit
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    pairs: PromptPairs | None = None
    attention: Sequence[AttentionPattern] = ()
    curves: Sequence[Curve] = ()
    error: str | None = None

    @property
    def head_values(self) -> dict[str, np.ndarray]:
        """Every number a head has, [n_layers, n_heads] float64 each, the score first; NaN where a head has none."""
        shape = self.circuit.n_layers, self.circuit.n_heads
        flat = {label: self.document[name] for name, label in _PER_HEAD.items() if name in self.document}
        if "causal_effects" in self.arrays:
            flat["causal effect"] = self.arrays["causal_effects"]
        values = {label: np.array(numbers, dtype=np.float64).reshape(shape) for label, numbers in flat.items()}
        if self.document.get("verification"):
            values["exact effect"] = np.full(shape, np.nan)
            for row in self.document["verification"]:
                head = parse_head(row["head"])
                if head is None:
                    raise ValueError(f"{row['head']!r} is no head")
                values["exact effect"][head] = row["effect"]
        return values

    @property
    def group(self) -> tuple[Any, ...]:
        """What runs share that differ in nothing but their seed."""
        names = (
            "model",
            "revision",
            "task",
            "negative",
            "method",
            "level",
            "positions",
            "n_train",
            "n_prompts",
            "dtype",
        )
        return *(self.document.get(name) for name in names), *self.document.get("seeds", ())

    @property
    def seeds(self) -> str:
        """The seeds of the method, as the command line takes them: "3", or "0-9" where scores are means."""
        seeds = self.document.get("seeds") or [self.document["seed"]]
        following = len(seeds) > 1 and seeds == list(range(seeds[0], seeds[0] + len(seeds)))
        return f"{seeds[0]}-{seeds[-1]}" if following else ",".join(map(str, seeds))

    @property
    def command(self) -> str:
        """The command line that repeats the run, quoted for a shell.

        Prompts that came from a file stand as ``prompts.json``, the copy beside the result.
        """
        from headcodes import tasks

        run = self.document
        if "command" in run:
            return str(run["command"])
        words = ["headcodes", "discover", "--model", run["model"]]
        if run.get("revision"):
            words += ["--revision", run["revision"]]
        if run["task"] in tasks.ids() and run["negative"] in tasks.get(run["task"]).negatives:
            words += ["--task", run["task"], "--negative", run["negative"]]
            words += ["--n-prompts", run["n_prompts"]] if "n_prompts" in run else []
        else:
            words += ["--prompts", "prompts.json"]
        words += ["--method", run["method"], "--level", run["level"]]
        words += _options(run, "n_train", "positions", "seed", "dtype", "threads", "bos", "fdr")
        if run.get("seeds"):
            words += ["--seeds", self.seeds]
        if run.get("verification"):
            words += ["--verify", len(run["verification"])]
        return shlex.join(map(str, words))


def record_of(result: Result, top: int = 20, attention: Sequence[AttentionPattern] = ()) -> RunRecord:
    """Return the record of a result in memory."""
    found = {"codes": result.findings.codes, "judged": result.findings.judged}
    if result.pair_tests is not None:
        found |= {"pair_p_family": result.pair_tests.p_family, "pair_q_values": result.pair_tests.q}
    if result.by_seed is not None:
        found |= {"head_scores_by_seed": result.by_seed.head_scores, **result.by_seed.agreement(top)}
    return RunRecord(
        document=result.as_json(top),
        circuit=result.circuit(top),
        arrays={name: array for name, array in found.items() if array is not None and name in _ARRAYS},
        pairs=result.pairs,
        attention=attention,
        curves=published_curves(result.model, result.pairs.task, result.method, result.head_scores),
    )


def read_folder(folder: Path | str) -> RunRecord:
    """Read a folder that ``Result.save`` wrote.

    An evaluation.json beside the result (``Evaluation.as_dict``) adds causal effects and curves against its truth;
    without one, published truths of the same model and task are taken.

    Raises:
        HeadcodesError: there is no result.json, or a file is damaged; the message names the file.
    """
    folder = Path(folder)
    path = folder / "result.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise HeadcodesError(
            "a run is a folder that `headcodes discover --out` wrote", f"{path}: {reason}", "Give such a folder."
        ) from error
    _check(document, path)
    try:
        return _from_folder(folder, document)
    except HeadcodesError as error:
        raise HeadcodesError(f"{folder}: {error.must}", error.got, error.mend) from error
    except Exception as error:  # safetensors raises its own kinds
        raise HeadcodesError(
            f"the files in {folder} belong together and are whole",
            f"{type(error).__name__}: {error}",
            "Write the run again with `headcodes discover --out`.",
        ) from error


def _from_folder(folder: Path, document: Mapping[str, Any]) -> RunRecord:
    from safetensors.numpy import load_file

    scores = folder / "scores.safetensors"
    stored = load_file(scores) if scores.exists() else {}
    arrays = {name: stored[name] for name in _ARRAYS if name in stored}
    prompts, judged = folder / "prompts.json", folder / "evaluation.json"
    shape = document["n_layers"], document["n_heads"]
    scores_of_heads = np.array(document["head_scores"], dtype=np.float64).reshape(shape)
    if judged.exists():
        evaluation = json.loads(judged.read_text(encoding="utf-8"))
        curves = curves_of_evaluation(evaluation, document["method"], scores_of_heads)
        if "head_effects" in (evaluation["truth"] or {}):
            arrays["causal_effects"] = np.array(evaluation["truth"]["head_effects"], dtype=np.float64)
    else:
        curves = published_curves(document["model"], document["task"], document["method"], scores_of_heads)
    record = RunRecord(
        document=document,
        circuit=Circuit.from_json(folder / "circuit.json"),
        arrays=arrays,
        pairs=PromptPairs.from_json(prompts) if prompts.exists() else None,
        attention=load_attention(folder),
        curves=curves,
    )
    n_component = document["n_layers"] * document["n_heads"]
    if (record.circuit.n_layers, record.circuit.n_heads) != shape:
        raise ValueError("circuit.json and result.json are of models of different shapes")
    _ = record.head_values  # numbers of the wrong kind or count are found here, not while drawing
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
    if codes is not None and len(arrays.get("judged", codes)) != len(codes):
        raise ValueError(f"{len(arrays['judged'])} marks of judged prompts for {len(codes)} rows of codes")
    return record


def read_store(folder: Path | str, top: int = 20) -> list[RunRecord]:
    """Read the cells of a scan's store, failed ones too, sorted by what was asked; a store keeps no prompts' texts.

    Raises:
        HeadcodesError: it is no store, or a file of its arrays is damaged.
    """
    from headcodes.scan.store import load_store

    rows = load_store(folder).to_pylist()
    asked = ("model", "revision", "task", "negative", "method", "level")
    rows.sort(key=lambda row: ([str(row[name]) for name in asked], row["seed"]))
    return [_from_row(row, Path(folder), top) for row in rows]


def _from_row(row: Mapping[str, Any], folder: Path, top: int) -> RunRecord:
    from safetensors.numpy import load_file

    arrays: dict[str, np.ndarray] = {}
    if row["arrays_sha256"]:
        path = folder / "arrays" / f"{row['identity']}.safetensors"
        try:
            arrays = load_file(path)
        except Exception as error:  # safetensors raises its own kinds
            raise HeadcodesError(
                "the arrays of a cell are whole", f"{path}: {error}", "Run the scan again: it mends damaged cells."
            ) from error
    # A cell that failed before its model was read has no shape.
    shape = row["n_layers"] or 1, row["n_heads"] or 1
    scores = np.array(row["head_scores"] or [0.0] * (shape[0] * shape[1]), dtype=np.float64).reshape(shape)
    check = ("n_pairs", "share_right", "positive_logit_diff", "negative_logit_diff")
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
    circuit = Circuit.from_scores(
        scores,
        top=top,
        pair_scores=arrays.get("pair_scores"),
        model=row["model"],
        task=row["task"],
        method=row["method"],
        d_model=row["d_model"],
        parallel_attn_mlp=bool(row["parallel_attn_mlp"]),
    )
    failure = (row["error"] or "no reason given") if row["status"] != "done" else None
    return RunRecord(
        document=document,
        circuit=circuit,
        arrays={name: arrays[name] for name in ("codes", "judged") if name in arrays},
        curves=[] if failure else published_curves(row["model"], row["task"], row["method"], scores),
        error=failure,
    )


_FROM_ROW = (
    *("model", "revision", "task", "method", "seed", "level", "n_prompts", "prompt_seed", "n_train", "positions"),
    *("bos", "bos_added", "dtype", "device", "threads", "backend"),
    *("n_layers", "n_heads", "mention_scores", "dead_share"),
)


def _options(settings: Mapping[str, Any], *names: str) -> list[Any]:
    """Return the settings that have a value as words of a command line."""
    given = [name for name in names if settings.get(name) is not None]
    return [word for name in given for word in ("--" + name.replace("_", "-"), settings[name])]


def _scan_command(row: Mapping[str, Any]) -> str:
    """Return the scan of this one cell."""
    model = row["model"] if row["revision"] is None else f"{row['model']}@{row['revision']}"
    # A cell that failed early, and one of a prompt file, names no negative.
    task = row["task"] if row["prompts"] or not row["negative"] else f"{row['task']}:{row['negative']}"
    lists = {"models": model, "tasks": task, "methods": row["method"], "seeds": row["seed"]}
    words = ["headcodes", "scan", *_options(lists, *lists)]
    words += _options(
        row, "level", "n_prompts", "prompt_seed", "n_train", "positions", "bos", "device", "dtype", "threads"
    )
    return shlex.join(map(str, [*words, "--store", "store"]))


def _page_command(row: Mapping[str, Any]) -> str:
    """Return what makes this cell again with its prompts and attention: a command line, or Python where none can."""
    if row["prompts"] or row["seed"] == row["prompt_seed"]:
        words = ["headcodes", "discover", *_options(row, "model", "revision")]
        if row["prompts"]:
            words += ["--prompts", row["task"]]
        else:
            words += _options({**row, "negative": row["negative"] or None}, "task", "negative", "n_prompts")
        words += _options(row, "method", "level", "n_train", "positions", "seed", "bos", "device", "dtype", "threads")
        return shlex.join(map(str, [*words, "--out", "cell"]))
    # `discover --seed` is of prompts and method at once; a scan keeps the two apart.
    build = {"n": row["n_prompts"], "seed": row["prompt_seed"], "negative": row["negative"]}
    run = {name: row[name] for name in ("method", "level", "seed", "n_train", "positions", "bos", "threads")}

    def written(values: Mapping[str, Any]) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in values.items() if value is not None)

    load = written({name: row[name] for name in ("revision", "device", "dtype")})
    return "\n".join(
        [
            "import headcodes",
            f"model = headcodes.load_model({row['model']!r}, {load})",
            f"pairs = headcodes.tasks.get({row['task']!r}).build(model.tokenizer, {written(build)})",
            f"headcodes.discover(model, pairs, {written(run)}).save('cell', model=model)",
        ]
    )


def _check(document: Any, path: Path) -> None:
    if not isinstance(document, dict):
        raise HeadcodesError(f"{path} holds a JSON object", type(document).__name__, "Write the run again.")
    for name, kinds in (_REQUIRED | _OPTIONAL).items():
        value = document.get(name)
        if value is None and name in _OPTIONAL:
            continue
        # bool is an int to Python, never to a reader of the file.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            kind = " or ".join(kind.__name__ for kind in kinds)
            raise HeadcodesError(f"'{name}' of {path} is a {kind}", repr(value)[:80], "Write the run again.")
    for name in ("task_check", "timings_s"):
        for key, value in document[name].items():
            if not isinstance(value, _NUMBER) or not abs(value) <= sys.float_info.max:
                raise HeadcodesError(
                    f"'{name}' of {path} holds finite numbers", f"{key}: {value!r}"[:80], "Write the run again."
                )


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
        inner = sorted(path.parent for path in folder.glob("*/result.json"))
        if (folder / "cells").is_dir():
            runs += read_store(folder)
        elif (folder / "result.json").exists() or not inner:
            runs.append(read_folder(folder))
        else:
            runs += [read_folder(path) for path in inner]
    if not runs:
        raise HeadcodesError("a report shows at least one run", "none", "Name the folders of runs.")
    return runs
