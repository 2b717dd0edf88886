"""What a scan may take, before it is done: from what the store knows of a model, else from the size of its weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.scan.ahead import weight_files
from headcodes.scan.cells import Job, group_of, model_of
from headcodes.scan.plan import Cell

# Where nothing is known of a model. Deliberately on the slow side; docs/scan.md states them.
READ_BYTES_A_SECOND = 200e6
FLOP_A_SECOND_AND_THREAD = 20e9
TOKENS_A_PROMPT = 20
METHOD_S = 5.0
# torch, transformers and the activations of one batch.
_BASE_BYTES = 1 << 30
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Estimate:
    """What cells may take.

    Attributes:
        seconds: with one worker. measured: share of the cells whose time is that of the same model, task and method
            in the store; of the others it is a rough guess from bytes.
        memory_bytes: of one worker with the largest model whose size is known.
        downloads: hub models that are not on this machine, with the bytes of their weights, None where unknown.
        unknown: models whose size is not known.
    """

    seconds: float
    measured: float
    memory_bytes: int
    downloads: dict[str, int | None]
    unknown: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the estimate for people."""
        minutes = self.seconds / 60
        time = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 1 else "a minute"
        lines = [
            f"time: about {time} with one worker ({self.measured:.0%} of the cells measured in this store, "
            "the others guessed from the size of the weights)",
            f"memory: about {self.memory_bytes / 2**30:.1f} GiB a worker",
        ]
        for name, size in self.downloads.items():
            lines.append(f"download: {name}, " + (f"{size / 1e9:.2f} GB" if size is not None else "size unknown"))
        if self.unknown:
            lines.append(f"not counted, for their size is not known: {', '.join(self.unknown)}")
        return lines


def estimate(jobs: Sequence[Job], store: Path | str) -> Estimate:
    """Estimate what cells may take; ``store`` need not exist. Asks the hub for sizes where it can be reached."""
    known = _measured(store)
    models: dict[tuple[object, ...], float] = {}
    sizes: dict[tuple[object, ...], float | None] = {}
    downloads: dict[str, int | None] = {}
    unknown: list[str] = []
    groups: set[tuple[object, ...]] = set()
    seconds, n_measured = 0.0, 0
    for _, cell in jobs:
        place = model_of(cell)
        if place not in sizes:
            sizes[place] = _weights_bytes(cell, downloads)
            if sizes[place] is None and not cell.model.startswith("planted-"):
                unknown.append(cell.model)
        size = sizes[place] or 0.0
        first = group_of(cell) not in groups
        groups.add(group_of(cell))
        rows = known.get((cell.model, cell.task, cell.method, cell.level, cell.dtype), [])
        if place not in models:
            models[place] = size
            seconds += median(row["load"] for row in rows) if rows else size / READ_BYTES_A_SECOND
        if rows:
            n_measured += 1
            seconds += median(row["total"] - row["capture"] for row in rows)
            seconds += median(row["capture"] for row in rows) if first else 0.0
        else:
            parameters = size / _WIDTHS.get(cell.dtype, 4)
            tokens = 2 * cell.n_prompts * TOKENS_A_PROMPT
            rate = FLOP_A_SECOND_AND_THREAD * cell.threads
            seconds += METHOD_S + (2 * parameters * tokens / rate if first else 0.0)
    return Estimate(
        seconds=seconds,
        measured=n_measured / max(len(jobs), 1),
        memory_bytes=_worker_bytes(sizes.values()),
        downloads=downloads,
        unknown=tuple(unknown),
    )


def worker_bytes(jobs: Sequence[Job]) -> int:
    """Return the memory of a worker that holds, one after another, the models of these cells; as ``estimate`` does."""
    return _worker_bytes(_weights_bytes(cell, {}) for cell in {model_of(cell): cell for _, cell in jobs}.values())


def _worker_bytes(sizes: Iterable[float | None]) -> int:
    return int(_BASE_BYTES + max((size or 0.0 for size in sizes), default=0.0))


def _measured(store: Path | str) -> dict[tuple[Any, ...], list[dict[str, float]]]:
    from headcodes.store.cells import load_store

    if not (Path(store) / "cells").is_dir():
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeadcodesWarning)  # survey has named what is damaged
        columns = ["status", "model", "task", "method", "level", "dtype", "timings_s"]
        rows = load_store(store).select(columns).to_pylist()
    found: dict[tuple[Any, ...], list[dict[str, float]]] = {}
    for row in rows:
        times = dict(row["timings_s"] or ())
        # A store can be anybody's: rows that lack a time tell nothing here.
        if row["status"] == "done" and all(times.get(stage) is not None for stage in ("load", "capture", "total")):
            key = row["model"], row["task"], row["method"], row["level"], row["dtype"]
            found.setdefault(key, []).append(times)
    return found


def _weights_bytes(cell: Cell, downloads: dict[str, int | None]) -> float | None:
    """Return bytes of a model's weights in the cell's dtype; files are taken to be of the width they are loaded in.

    Converted GGUF files are float32, so their bytes are those of float32.
    """
    from headcodes.models.sources import hub_answers, hub_folder, resolve

    try:
        found = resolve(cell.model, cell.revision)
    except (OSError, HeadcodesError):
        return None
    files = weight_files(cell)
    if files:
        size = float(sum(file.stat().st_size for file in files))
        if found.kind == "gguf":
            # Before its conversion a file holds about one byte a parameter (Q8_0); after it, four.
            stored = 1 if files == [found.path] else 4
            return size / stored * _WIDTHS.get(cell.dtype, 4)
        return size
    if found.kind != "hub" or cell.model.startswith("planted-") or hub_folder(found.name, cell.revision) is not None:
        return None
    downloads[cell.label.split()[0]] = None
    if not hub_answers():
        return None
    from huggingface_hub import HfApi

    try:
        listed = HfApi().model_info(found.name, revision=cell.revision, files_metadata=True, timeout=10).siblings or []
    except OSError:
        return None
    by_kind = [
        sum(file.size or 0 for file in listed if file.rfilename.endswith(kind)) for kind in (".safetensors", ".bin")
    ]
    total = next((total for total in by_kind if total), None)
    downloads[cell.label.split()[0]] = total
    return total
