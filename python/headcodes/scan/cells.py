"""Doing cells: a model is loaded once, a set of prompts captured once, and a failure is a row like any other."""

from __future__ import annotations

import gc
import json
import os
import socket
import time
import traceback
import warnings
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.provenance import versions
from headcodes.scan.ahead import read_ahead
from headcodes.scan.measure import BudgetExceeded, begin_peak, budget, peak_bytes
from headcodes.scan.plan import Cell, forget_models
from headcodes.settings import parse_verify

if TYPE_CHECKING:
    import numpy as np

    from headcodes.methods.inputs import Inputs
    from headcodes.models.model import Model

# A cell with its identity, which takes long to work out.
Job = tuple[str, Cell]
# A row of the store and the arrays that are too large for it.
Outcome = tuple[dict[str, Any], "dict[str, np.ndarray[Any, Any]]"]


def model_of(cell: Cell) -> tuple[object, ...]:
    """Return what cells share that can use one loaded model."""
    return cell.model, cell.revision, cell.projection, cell.device, cell.dtype


def group_of(cell: Cell) -> tuple[object, ...]:
    """Return what cells share that can use one capture."""
    return *model_of(cell), *(value for name, value in vars(cell).items() if name not in ("method", "level", "seed"))


class Queue:
    """Cells still to be done, handed out so that a worker keeps its model and its prompts as long as it can."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._groups: dict[tuple[object, ...], list[Job]] = {}
        for job in jobs:
            self._groups.setdefault(group_of(job[1]), []).append(job)
        for group in self._groups.values():
            group.reverse()  # taken from the end
        self._at: dict[Hashable, tuple[object, ...]] = {}

    def take(self, worker: Hashable) -> Job | None:
        """Return the next cell for a worker: of its prompts, else its model, else one of a free model, else any."""
        here = self._at.get(worker)
        choices = [group for group, jobs in self._groups.items() if jobs]
        if not choices:
            return None
        taken = set(self._at.values())
        models = {group[:4] for group in taken}

        def fitness(group: tuple[object, ...]) -> tuple[bool, bool, bool, bool, int]:
            same_model = here is not None and group[:4] == here[:4]
            free = group not in taken
            # A stolen group costs a load and a capture: where it must be, of the one with most left.
            left = 0 if free else len(self._groups[group])
            return group == here, same_model and free, free and group[:4] not in models, free, left

        group = max(choices, key=fitness)
        self._at[worker] = group
        return self._groups[group].pop()

    def ahead(self, cell: Cell) -> Cell | None:
        """Return a cell of the model that will be wanted next, None where every model left is in use."""
        models = {group[:4] for group in self._at.values()} | {model_of(cell)}
        return next((jobs[-1][1] for group, jobs in self._groups.items() if jobs and group[:4] not in models), None)


# Status of a worker process whose CUDA device was lost.
DEVICE_LOST = 70


class _ChangedError(HeadcodesError):
    """Ends a scan: its rows would be kept as what they are not."""


class Worker:
    """Does one cell after another, and keeps the last model and the last capture.

    Args:
        budget_s: seconds that a cell may take, its model loaded; None sets no limit.
        expendable: whether this process may end itself where its CUDA device is lost; whoever sent the cell then sends
            it to another.
    """

    def __init__(self, budget_s: float | None = None, expendable: bool = False) -> None:
        self._budget_s, self._expendable = budget_s, expendable
        # Of the capture that cells share: the most it held beside what was there before, and what is left of it.
        self._capture_bytes, self._captured_bytes = 0, 0
        self._model_of: tuple[object, ...] | None = None
        self._model: Model | Exception | None = None
        self._load_s = 0.0
        self._inputs_of: tuple[object, ...] | None = None
        self._inputs: Inputs | Exception | None = None

    def ready(self) -> None:
        """Answer, where a call is how a worker elsewhere is found to be there."""

    def do(self, identity: str, cell: Cell, ahead: Cell | None = None) -> Outcome:
        """Do one cell. What goes wrong in it is a row with ``status`` "failed".

        Args:
            identity: as it was when the scan was planned.
            ahead: a cell of the next model: its files are read ahead while this one computes.

        Raises:
            HeadcodesError: the cell is another one here and now: other code, libraries or weights.
        """
        from headcodes.discovery import explain
        from headcodes.models.devices import torch_threads

        try:
            with torch_threads(cell.threads):
                self.model(cell)
                if cell.identity() != identity:
                    raise _ChangedError(
                        "code, libraries and models must stay the same from planning a scan to doing its cells",
                        f"others on {socket.gethostname()} for {cell.label}",
                        "Use one installation on every machine; after a change, start the scan again.",
                    )
                if ahead is not None:
                    read_ahead(ahead)
                with budget(self._budget_s):
                    inputs = self._open(cell)
                    held = begin_peak(cell.device) - self._captured_bytes
                    verify = parse_verify(cell.verify)
                    result = explain(
                        inputs, cell.method, level=cell.level, seed=cell.seed, stable=cell.stable, verify=verify
                    )
        except _ChangedError:
            raise
        except BudgetExceeded:
            self._inputs, self._inputs_of = None, None  # perhaps half made
            row = failed(identity, cell, f"more than {self._budget_s:g} s", "budget")
            return row | {"budget_s": self._budget_s}, {}
        except Exception as error:
            if self._expendable and loses_device(error):
                os._exit(DEVICE_LOST)
            kind = "refused" if isinstance(error, HeadcodesError) else "error"
            return failed(identity, cell, message(error), kind), {}
        findings, check = result.findings, result.task_check
        arrays = {
            "codes": findings.codes,
            "scored_prompts": findings.scored_prompts,
            "pair_scores": findings.pair_scores,
            "signed_scores": None if findings.signed is None else findings.signed_scores,
            "edge_scores": None if findings.edges is None else findings.edges.scores,
        }
        row = row_of(
            identity,
            cell,
            status="done",
            held_memory_bytes=held,
            peak_memory_bytes=max(peak_bytes(cell.device), held + self._capture_bytes),
            family=inputs.model.family,
            d_model=inputs.model.d_model,
            parallel_attn_mlp=inputs.model.parallel_attn_mlp,
            negative=result.pairs.negative,
            bos_added=result.bos_added,
            backend=result.backend,
            n_layers=result.n_layers,
            n_heads=result.n_heads,
            layers_without_heads=list(result.layers_without_heads),
            n_pairs=check.n_pairs,
            head_scores=result.head_scores.ravel().tolist(),
            mention_scores=None if result.mention_scores is None else result.mention_scores.ravel().tolist(),
            **({} if findings.resampled is None else findings.resampled.as_json()),
            circuit=None if result.verification is None else json.dumps(result.circuit().as_dict()),
            unverified=result.unverified,
            method_used=result.method_used,
            fallback=findings.fallback,
            pairs_proposed_by=findings.pairs_proposed_by,
            dead_share=findings.dead_share,
            share_right=check.share_right,
            positive_logit_diff=check.positive_logit_diff,
            negative_logit_diff=check.negative_logit_diff,
            timings_s=list((result.timings_s | {"load": self._load_s}).items()),
            versions=list(result.versions.items()),
        )
        return row, {name: array for name, array in arrays.items() if array is not None}

    def model(self, cell: Cell) -> Model:
        """Return a cell's model, loaded if the last cell had another.

        Raises:
            HeadcodesError: it cannot be loaded.
        """
        if self._model_of != model_of(cell):
            # Let go of the last model first: two at once may not fit.
            self._model, self._model_of = None, model_of(cell)
            self._inputs, self._inputs_of = None, None
            give_back(cell.device)
            start = time.perf_counter()
            self._model = _or_error(_load, cell)
            self._load_s = time.perf_counter() - start
            forget_models()
        if isinstance(self._model, Exception):
            raise self._model
        assert self._model is not None
        return self._model

    def _open(self, cell: Cell) -> Inputs:
        model = self.model(cell)
        if self._inputs_of != group_of(cell):
            self._inputs, self._inputs_of = None, group_of(cell)
            give_back(cell.device)
            before = begin_peak(cell.device)
            self._inputs = _or_error(_capture, model, cell)
            self._capture_bytes = peak_bytes(cell.device) - before
            self._captured_bytes = begin_peak(cell.device) - before
        if isinstance(self._inputs, Exception):
            raise self._inputs
        assert self._inputs is not None
        return self._inputs


def _or_error(make: Any, *arguments: Any) -> Any:
    """Return what ``make`` makes, or its exception without the frames that would hold half a model in memory."""
    try:
        return make(*arguments)
    except Exception as error:
        if isinstance(error, HeadcodesError):
            return HeadcodesError(error.must, error.got, error.mend)
        return RuntimeError(message(error))


def _load(cell: Cell) -> Model:
    from headcodes.models.load import load_model

    settings = {name: getattr(cell, name) for name in ("revision", "device", "dtype", "projection")}
    return load_model(cell.model, **settings)


def _capture(model: Model, cell: Cell) -> Inputs:
    from headcodes import tasks
    from headcodes.methods.inputs import Inputs
    from headcodes.models.asked import ask_as
    from headcodes.prompts.files import read_as, source_checksum

    if cell.prompts:
        if source_checksum(cell.task) != cell.prompts:
            raise HeadcodesError(
                "a prompt file must stay the same during a scan", f"{cell.task} changed", "Start the scan again."
            )
        pairs = read_as(cell.task, cell)
    else:
        task = tasks.get(cell.task)
        pairs = task.build(model.tokenizer, n=cell.n_prompts, seed=cell.prompt_seed, negative=cell.negative)
    inputs = Inputs(model, ask_as(model, pairs, cell, cell.prompt_seed), cell)
    with warnings.catch_warnings():
        # Over many models, many hardly do a task; the row has it in share_right.
        warnings.simplefilter("ignore", HeadcodesWarning)
        _ = inputs.task_check
    return inputs


def give_back(device: str) -> None:
    """Free memory that is no longer referenced; on a GPU also torch's own cache, as others may share the device."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def loses_device(error: Exception) -> bool:
    """Say whether an error leaves this process without its CUDA device: after one, every later call fails too."""
    text = str(error)
    return "CUDA error:" in text and "out of memory" not in text


def message(error: Exception) -> str:
    """Return why a cell has failed, in one line where Python says it in one."""
    if isinstance(error, HeadcodesError) or (type(error) is RuntimeError and error.__traceback__ is None):
        return str(error)
    # torch tells memory that ran out on the CPU only by its text.
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate" in str(error):
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"out of memory: {first} Use fewer --workers, dtype bfloat16, or a larger machine."
    where = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(where[-1].filename).name}:{where[-1].lineno})" if where else ""
    return f"{type(error).__name__}: {error}{place}"


def row_of(identity: str, cell: Cell, **found: Any) -> dict[str, Any]:
    """Return a row of the store: a cell's settings, where it was done, and what was found."""
    return {"identity": identity} | vars(cell) | {"host": socket.gethostname()} | found


def failed(identity: str, cell: Cell, error: str, kind: str = "error") -> dict[str, Any]:
    """Return the row of a cell without a result; ``kind`` is "budget", "refused" (a HeadcodesError) or "error"."""
    peak = peak_bytes(cell.device)
    return row_of(
        identity,
        cell,
        status="failed",
        error=error,
        failure=kind,
        peak_memory_bytes=peak,
        versions=list(versions().items()),
    )
