"""The causal truth: what a model's answer loses when a part is replaced by its activation on the corrupted prompt.

Resample patching: a head's result (at all positions) is taken from the corrupted run, everything after it is
computed again. The effect is LD(clean) - LD(patched), with LD the logit difference, logsumexp over the right
answers less logsumexp over the wrong ones. Positive effects belong to parts that help to answer, negative
ones to parts that work against it. Exact up to the rounding of the model's dtype: truths are made in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from headcodes import metrics
from headcodes.activations.capture import capture
from headcodes.errors import HeadcodesError
from headcodes.files import cache_dir, checksum
from headcodes.interventions.edits import EditPlan, groups
from headcodes.interventions.engine import AUTO, Compute, EngineUsed
from headcodes.interventions.metric import measure_rows, whole_vocabulary
from headcodes.interventions.walk import run_edited
from headcodes.progress import progress as progress_bar
from headcodes.prompts.task_check import logit_differences
from headcodes.provenance import code_checksum, library_versions
from headcodes.settings import Components, Metric, check_components
from headcodes.store.kept import keep_tensors, kept_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Bool, Float
    from numpy.typing import ArrayLike

    from headcodes.interventions.base_runs import Prepared
    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs


_VERSION = 2


# So many heads of largest effect are a causal truth's circuit, unless told.
N_LARGEST = 20


@dataclass(frozen=True)
class CausalTruth:
    """Exact effects of patching every part of a model on one task.

    Attributes:
        effects: Signed effects [n_pairs, n_component] in logits, float64: all heads layer-major, then, where
            asked for, all MLPs.
        clean_ld, corrupt_ld: Logit differences [n_pairs] of the two runs.
        n_answered: How many of the pairs looked at are answered right; only these are patched.
        n_given: How many pairs were looked at: no more than it took to find those wanted.
        names: Name of each component.
        engine: Which engine patched, and why; None where every effect was in the cache.
    """

    effects: Float[np.ndarray, "n_pairs n_component"]
    clean_ld: Float[np.ndarray, " n_pairs"]
    corrupt_ld: Float[np.ndarray, " n_pairs"]
    n_answered: int
    n_given: int
    names: list[str]
    n_layers: int
    n_heads: int
    model: str
    task: str
    engine: EngineUsed | None = None

    @property
    def mean_effects(self) -> Float[np.ndarray, " n_component"]:
        """Mean effect of every component over the pairs."""
        mean: Float[np.ndarray, " n_component"] = self.effects.mean(axis=0)
        return mean

    @property
    def head_effects(self) -> Float[np.ndarray, "n_layers n_heads"]:
        """Mean effect of every head."""
        return self.mean_effects[: self.n_layers * self.n_heads].reshape(self.n_layers, self.n_heads)

    @property
    def per_pair_head_effects(self) -> Float[np.ndarray, "n_pairs n_head"]:
        """Effect of every head on every pair, heads layer-major."""
        return self.effects[:, : self.n_layers * self.n_heads]

    def labels(self, top: int = N_LARGEST) -> Bool[np.ndarray, "n_layers n_heads"]:
        """True for the ``top`` heads of largest |mean effect|."""
        return metrics.largest(self.head_effects, top)

    def largest(self, k: int = 10) -> list[tuple[str, float]]:
        """Return names and mean effects of the ``k`` components of largest |mean effect|."""
        mean = self.mean_effects
        return [(self.names[i], float(mean[i])) for i in np.argsort(-np.abs(mean), kind="stable")[:k]]


def n_of_largest_effect(top: int | None, n_heads: int) -> int:
    """Return how many of a model's heads a causal truth takes for the circuit: ``top``; where it is None
    ``N_LARGEST``, but no more than half."""
    return max(1, min(N_LARGEST, n_heads // 2)) if top is None else top


class _Patches(EditPlan):
    """Row r takes one component from the corrupted run."""

    def __init__(self, components: Sequence[tuple[int, int | None]]) -> None:
        self.components = list(components)
        self.starts = [layer for layer, _ in self.components]
        self.edits_mlps = any(head is None for _, head in self.components)

    def edit_heads(self, layer: int, z: Tensor) -> None:
        for row, (where, head) in enumerate(self.components, start=2):
            if where == layer and head is not None:
                z[row, :, :, head] = z[1, :, :, head]

    def edit_mlp(self, layer: int, output: Tensor) -> None:
        for row, (where, head) in enumerate(self.components, start=2):
            if where == layer and head is None:
                output[row] = output[1]

    def part(self, rows: slice) -> EditPlan:
        return _Patches(self.components[rows])


def causal_truth(
    model: Model,
    tokens: TokenPairs,
    components: Components = "heads",
    pairs: int | None = None,
    *,
    progress: bool = True,
    cache: bool = True,
    compute: Compute = AUTO,
    metric: Metric = "logit-diff",
) -> CausalTruth:
    """Patch every head (and MLP) on every answered pair.

    Each pair's effects are kept in the cache folder under ``truths``, by the checksum of the model, its
    dtype, and the pair's tokens and answers; an interrupted run goes on where it stopped, and another set of
    pairs reuses what it shares with an earlier one.

    Args:
        model: Preferably in float32; its dtype is part of the cache's key.
        tokens: Pairs whose two prompts have equally many tokens.
        components: "heads", or "heads+mlps".
        pairs: How many answered pairs to use, the first ones; all where None.
        progress: Show a bar on stderr (in a terminal).
        cache: Read and write the cache.
        compute: With which engine, in how much memory.
        metric: What effects are of (``headcodes.interventions.metric``). Which pairs are answered right is always told
            by the logit difference.

    Raises:
        HeadcodesError: unequal lengths, no answered pair, or another value of ``components``.
    """
    check_components(components)
    chosen, clean_ld, corrupt_ld, n_answered, n_given = answered(model, tokens, pairs)
    parts: list[tuple[int, int | None]] = [
        (layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)
    ]
    names = list(model.components)
    if components == "heads+mlps":
        parts += [(layer, None) for layer in range(model.n_layers)]
        names += [f"m{layer}" for layer in range(model.n_layers)]
    real = [place for place, (layer, head) in enumerate(parts) if head is None or layer not in model.without_heads]
    some = [parts[place] for place in real]
    found, used = patch_effects(model, chosen, some, components, progress, cache, compute, metric)
    # A layer without heads has nothing to patch.
    effects = np.zeros((len(chosen), len(parts)))
    effects[:, real] = found
    return CausalTruth(
        effects=effects,
        clean_ld=clean_ld,
        corrupt_ld=corrupt_ld,
        n_answered=n_answered,
        n_given=n_given,
        names=names,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        model=model.name,
        task=tokens.pairs.task,
        engine=used,
    )


def answered(
    model: Model, tokens: TokenPairs, pairs: int | None, known: tuple[ArrayLike, ArrayLike] | None = None
) -> tuple[TokenPairs, Float[np.ndarray, " n"], Float[np.ndarray, " n"], int, int]:
    """Return the first ``pairs`` pairs that are answered right, their logit differences on the clean and the
    corrupted prompts, and how many are answered right of how many looked at: no more than it takes.

    Args:
        known: logit differences of all clean and all corrupted prompts, where the model need not be asked.

    Raises:
        HeadcodesError: unequal lengths, or no answered pair.
    """
    groups(tokens)  # unequal lengths should not cost a forward pass

    def differences(some: range) -> list[Float[np.ndarray, " n"]]:
        if known is not None:
            return [np.asarray(side, dtype=np.float64)[some] for side in known]
        looked = tokens.subset(some)
        _, logits = capture(model, [*looked.clean, *looked.corrupt], answer_ids=looked.scored_ids * 2)
        assert logits is not None
        return [logit_differences(looked, side) for side in (logits[: len(looked)], logits[len(looked) :])]

    clean, corrupt = np.empty(0), np.empty(0)
    while len(clean) < len(tokens):
        missing = len(tokens) if pairs is None else pairs - int((clean > 0).sum())
        if missing <= 0:
            break
        # An eighth more than is missing: a task worth explaining is mostly answered, and looking twice costs a pass.
        some = range(len(clean), min(len(tokens), len(clean) + missing + -(-missing // 8)))
        clean, corrupt = (np.concatenate(sides) for sides in zip((clean, corrupt), differences(some), strict=True))
    right = np.flatnonzero(clean > 0)
    if not right.size:
        raise HeadcodesError(
            "the model must answer at least one pair right, else there is nothing to explain",
            f"none of {len(tokens)}",
            "Choose a task that the model does, or another model.",
        )
    chosen = right[:pairs]
    return tokens.subset(chosen.tolist()), clean[chosen], corrupt[chosen], len(right), len(clean)


def logit_diffs(
    tokens: TokenPairs, indices: Sequence[int], logits: Sequence[list[Tensor]], metric: Metric = "logit-diff"
) -> Float[np.ndarray, "n_pair n_row"]:
    """Return the logit difference, or another metric, of every row of some pairs, float64; row 0 is the clean run.

    Args:
        indices: of the pairs in ``tokens``.
        logits: as ``run_edited`` hands them over; the host waits for their device once.
    """
    values = [
        measure_rows(metric, torch.cat(own), tokens.answers[index], tokens.wrong_answers[index])
        for index, own in zip(indices, logits, strict=True)
    ]
    found: Float[np.ndarray, "n_pair n_row"] = torch.stack(values).cpu().numpy()
    if not np.isfinite(found).all():
        first = indices[int((~np.isfinite(found)).any(axis=1).argmax())]
        raise HeadcodesError(
            "what a patched model answers must be finite",
            f"NaN or infinity at prompt {first}",
            "Load the model with dtype='float32'.",
        )
    return found


def patch_effects(
    model: Model,
    tokens: TokenPairs,
    parts: Sequence[tuple[int, int | None]],
    components: str,
    progress: bool,
    cache: bool,
    compute: Compute = AUTO,
    metric: Metric = "logit-diff",
    prepared: Prepared | None = None,
) -> tuple[Float[np.ndarray, "n_pairs n_part"], EngineUsed | None]:
    """Return L(clean) - L(part patched) for every pair and part, parts in the order given, L being a metric.

    And the engine that ran; None where the cache held all effects. ``prepared``: see ``run_edited``.
    """
    if metric != "logit-diff":
        components = f"{components} {metric}"  # other effects, under another name in the cache
    effects = np.empty((len(tokens), len(parts)))
    paths = [_cache_path(model, tokens, index, components) if cache else None for index in range(len(tokens))]
    missing = [index for index, path in enumerate(paths) if not _read(path, effects[index])]
    if not missing:
        return effects, None
    by_layer = sorted(range(len(parts)), key=lambda part: parts[part][0])
    plan = _Patches([parts[part] for part in by_layer])
    todo = tokens.subset(missing)
    with progress_bar("patching", total=len(missing) if progress else 0) as advance:

        def done(indices: list[int], logits: list[list[Tensor]]) -> None:
            for index, found in zip(indices, logit_diffs(todo, indices, logits, metric), strict=True):
                row = effects[missing[index]]
                row[by_layer] = found[0] - found[2:]
                _write(paths[missing[index]], row, {"model": model.name, "task": tokens.pairs.task, "n_pairs": 1})
            advance(len(indices))

        whole = whole_vocabulary(metric)
        used = run_edited(model, todo, plan, done=done, compute=compute, whole_vocabulary=whole, prepared=prepared)
    return effects, used


def _cache_path(model: Model, tokens: TokenPairs, index: int, components: str) -> Path:
    """Name a pair's effects after everything they depend on."""
    model_key = [_VERSION, code_checksum(), library_versions(), model.checksum, str(model.dtype)]
    model_key += [model.device.type, components]
    pair_key = [tokens.clean[index], tokens.corrupt[index], tokens.answers[index], tokens.wrong_answers[index]]
    folder, file = (checksum(json.dumps(key).encode())[:24] for key in (model_key, pair_key))
    return cache_dir() / "truths" / folder / f"{file}.safetensors"


def _read(path: Path | None, row: Float[np.ndarray, " n_part"]) -> bool:
    """Fill ``row`` from the cache; False where it is not there, or not whole."""
    if path is None:
        return False
    kept = kept_tensors(path)
    if kept is None or "effects" not in kept[0]:
        return False
    found = kept[0]["effects"].numpy()
    if found.shape != row.shape or found.dtype != row.dtype:
        return False
    row[:] = found
    return True


def _write(path: Path | None, row: Float[np.ndarray, " n_part"], about: Mapping[str, Any]) -> None:
    if path is None:
        return
    keep_tensors(path, {"effects": torch.from_numpy(row.copy())}, about)
