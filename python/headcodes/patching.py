"""The causal truth: what a model's answer loses when one part of it says what it says on the corrupted
prompt.

Resample patching: a head's result (at all positions) is taken from the corrupted run, everything after it is
computed again. The effect is LD(clean) - LD(patched), with LD the logit difference, logsumexp over the right
answers less logsumexp over the wrong ones. Positive effects belong to parts that help to answer, negative
ones to parts that hold back. Exact up to the rounding of the model's dtype: truths are made in float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from headcodes import metrics
from headcodes.activations import capture
from headcodes.circuit import head_name, parse_head, split_slot
from headcodes.errors import HeadcodesError
from headcodes.files import atomic_write, cache_dir, checksum
from headcodes.progress import progress as progress_bar
from headcodes.sweep import DEFAULT_SWEEP_BYTES, Plan, groups, run
from headcodes.task_check import logit_differences

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Bool, Float
    from numpy.typing import ArrayLike

    from headcodes.models import Model
    from headcodes.prompts import TokenPairs

Components = Literal["heads", "heads+mlps"]
Engine = Literal["auto", "walk", "forward"]

_VERSION = 1


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

    def labels(self, top: int = 20) -> Bool[np.ndarray, "n_layers n_heads"]:
        """True for the ``top`` heads of largest |mean effect|."""
        return metrics.largest(self.head_effects, top)

    def largest(self, k: int = 10) -> list[tuple[str, float]]:
        """Return names and mean effects of the ``k`` components of largest |mean effect|."""
        mean = self.mean_effects
        return [(self.names[i], float(mean[i])) for i in np.argsort(-np.abs(mean), kind="stable")[:k]]


@dataclass(frozen=True)
class Verification:
    """Exact effects of a few heads, with bootstrap intervals over the pairs.

    Attributes:
        heads: (layer, head), in the order given.
        effects: [n_pairs, n_head] in logits.
        mean, low, high: [n_head]; the interval is of the mean.
        clean_ld, corrupt_ld: [n_pairs].
        n_answered, n_given: As in ``CausalTruth``.
    """

    heads: list[tuple[int, int]]
    effects: Float[np.ndarray, "n_pairs n_head"]
    mean: Float[np.ndarray, " n_head"]
    low: Float[np.ndarray, " n_head"]
    high: Float[np.ndarray, " n_head"]
    clean_ld: Float[np.ndarray, " n_pairs"]
    corrupt_ld: Float[np.ndarray, " n_pairs"]
    n_answered: int
    n_given: int

    def confirmed(self, share: float = 0.05) -> list[tuple[int, int]]:
        """Return the heads whose interval excludes 0 and whose |mean| is at least ``share`` of the clean
        LD."""
        least = share * float(self.clean_ld.mean())
        rows = zip(self.heads, self.mean, self.low, self.high, strict=True)
        return [head for head, mean, low, high in rows if (low > 0 or high < 0) and abs(mean) >= least]

    def as_rows(self) -> list[dict[str, Any]]:
        """Return one dict a head: name, effect, low, high."""
        rows = zip(self.heads, self.mean, self.low, self.high, strict=True)
        return [
            {"head": head_name(*head), "effect": float(mean), "low": float(low), "high": float(high)}
            for head, mean, low, high in rows
        ]


class _Patches(Plan):
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

    def part(self, rows: slice) -> Plan:
        return _Patches(self.components[rows])


def causal_truth(
    model: Model,
    tokens: TokenPairs,
    components: Components = "heads",
    pairs: int | None = None,
    *,
    progress: bool = True,
    cache: bool = True,
    engine: Engine = "auto",
    memory_bytes: int = DEFAULT_SWEEP_BYTES,
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
        engine: See ``headcodes.sweep.run``.
        memory_bytes: See ``headcodes.sweep.run``.

    Raises:
        HeadcodesError: unequal lengths, no answered pair, or another value of ``components``.
    """
    if components not in ("heads", "heads+mlps"):
        raise HeadcodesError("components is heads or heads+mlps", repr(components), "Choose one of them.")
    chosen, clean_ld, corrupt_ld, n_answered, n_given = answered(model, tokens, pairs)
    parts: list[tuple[int, int | None]] = [
        (layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)
    ]
    names = list(model.components)
    if components == "heads+mlps":
        parts += [(layer, None) for layer in range(model.n_layers)]
        names += [f"m{layer}" for layer in range(model.n_layers)]
    effects = _effects(model, chosen, parts, components, progress, cache, engine, memory_bytes)
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
    )


def verify(
    model: Model,
    tokens: TokenPairs,
    heads: Sequence[tuple[int, int]],
    *,
    pairs: int | None = None,
    known: tuple[ArrayLike, ArrayLike] | None = None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    engine: Engine = "auto",
    memory_bytes: int = DEFAULT_SWEEP_BYTES,
) -> Verification:
    """Patch only ``heads``, exactly, and say how sure the pairs make us of each effect.

    Args:
        model: In any dtype; effects carry its rounding.
        tokens: Pairs whose two prompts have equally many tokens; only answered ones count.
        heads: (layer, head), in any order.
        pairs: How many answered pairs to use; all where None.
        known: Logit differences [n_pairs] of all clean and all corrupted prompts, where they are at hand:
            saves two forward passes a pair.
        level: Of the bootstrap interval of each mean effect.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.
        engine: See ``headcodes.sweep.run``.
        memory_bytes: See ``headcodes.sweep.run``.

    Raises:
        HeadcodesError: no heads, a head that the model does not have, or as ``causal_truth``.
    """
    wanted = [(int(layer), int(head)) for layer, head in heads]
    for layer, head in wanted:
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise HeadcodesError(
                f"heads lie in {model.n_layers} layers of {model.n_heads}", f"{(layer, head)}", "Check the head."
            )
    if not wanted:
        raise HeadcodesError("there are heads to verify", "none", "Propose at least one.")
    chosen, clean_ld, corrupt_ld, n_answered, n_given = answered(model, tokens, pairs, known)
    parts = sorted(set(wanted))
    found = _effects(model, chosen, list(parts), "heads", False, False, engine, memory_bytes)
    effects = found[:, [parts.index(head) for head in wanted]]
    low, high = metrics.mean_intervals(effects, n_resamples=n_resamples, level=level, seed=seed)
    return Verification(wanted, effects, effects.mean(axis=0), low, high, clean_ld, corrupt_ld, n_answered, n_given)


def path_effects(
    model: Model,
    tokens: TokenPairs,
    edges: Sequence[tuple[str, str]],
    *,
    pairs: int | None = None,
    engine: Engine = "auto",
    memory_bytes: int = DEFAULT_SWEEP_BYTES,
) -> Float[np.ndarray, "n_pairs n_edge"]:
    """Path patching: how much of a head's effect goes through what one later head reads.

    As Wang et al. 2022 (arXiv 2211.00593): the sender says what it says on the corrupted prompt while all
    other heads say what they say on the clean one, MLPs being computed again; the receiver's query, key or
    value that comes of it is put into an otherwise clean run. The effect is LD(clean) - LD(that run). With
    grouped-query attention a key or value belongs to all heads of its group, and so does its effect.

    Args:
        model: In any dtype; effects carry its rounding.
        tokens: Pairs whose two prompts have equally many tokens; only answered ones count.
        edges: As a circuit's: ``("a0.h1", "a5.h5<q>")``. Without a slot, query, key and value change
            together. The receiver ``"logits"`` gives the sender's direct effect on the answer.
        pairs: How many answered pairs to use; all where None.
        engine: See ``headcodes.sweep.run``.
        memory_bytes: See ``headcodes.sweep.run``.

    Raises:
        HeadcodesError: an edge that does not go from a head to a later head or the logits, a family whose
            query, key and value projections are unknown, or as ``causal_truth``.
    """
    chosen, *_ = answered(model, tokens, pairs)
    effects = np.empty((len(chosen), len(edges)))
    # Receivers depend on their senders' rows, so a batch holds whole paths: a few at a time.
    for first in range(0, len(edges), _PATHS_AT_ONCE):
        plan = _Paths(model, edges[first : first + _PATHS_AT_ONCE])

        def done(indices: list[int], logits: list[list[Tensor]], plan: _Paths = plan, first: int = first) -> None:
            for index, values in zip(indices, logits, strict=True):
                found = _ld(chosen, index, values)
                effects[index, first : first + len(plan.outcomes)] = found[0] - found[plan.outcomes]

        run(model, chosen, plan, done=done, engine=engine, memory_bytes=memory_bytes, splits=False)
    return effects


_PATHS_AT_ONCE = 64


class _Paths(Plan):
    """A sender's row: its head corrupted, all later heads held at clean. A receiver's row: one slot from
    there."""

    def __init__(self, model: Model, edges: Sequence[tuple[str, str]]) -> None:
        self.group_size = model.n_heads // model.n_kv_heads
        rows: list[tuple[int, int, Any]] = []
        for order, (source, target) in enumerate(edges):
            name, slot = split_slot(target)
            sender, receiver = parse_head(source), parse_head(name)
            fits = sender is not None and sender[0] < model.n_layers and sender[1] < model.n_heads
            if receiver is not None and sender is not None:
                fits &= sender[0] < receiver[0] < model.n_layers and receiver[1] < model.n_heads
            if not fits or (receiver is None and target != "logits"):
                raise HeadcodesError(
                    "a path goes from a head to a later head of the model, or to logits",
                    f"{source}->{target}",
                    "Name it like ('a0.h1', 'a5.h5<q>').",
                )
            assert sender is not None
            rows.append((sender[0], order, ("sender", sender)))
            if receiver is not None:
                rows.append((receiver[0], order, ("receiver", receiver, slot or "qkv")))
        rows.sort(key=lambda row: row[0])
        self.starts = [layer for layer, _, _ in rows]
        self.rows = [what for _, _, what in rows]
        self.outcomes = [0] * len(edges)
        self.sender_row = {}
        for row, (_, order, what) in enumerate(rows, start=2):
            if what[0] == "sender":
                self.sender_row[order] = row
            self.outcomes[order] = row  # a receiver's row comes after its sender's
        self.order = [order for _, order, _ in rows]

    def edit_heads(self, layer: int, z: Tensor) -> None:
        for row, what in enumerate(self.rows, start=2):
            if what[0] == "sender" and layer >= what[1][0]:
                z[row] = z[0]
                if layer == what[1][0]:
                    z[row, :, :, what[1][1]] = z[1, :, :, what[1][1]]

    def slots(self, layer: int) -> str:
        wanted = {slot for what in self.rows if what[0] == "receiver" and what[1][0] == layer for slot in what[2]}
        return "".join(sorted(wanted))

    def edit_slot(self, layer: int, slot: str, values: Tensor) -> None:
        for row, (what, order) in enumerate(zip(self.rows, self.order, strict=True), start=2):
            if what[0] == "receiver" and what[1][0] == layer and slot in what[2]:
                head = what[1][1] if slot == "q" else what[1][1] // self.group_size
                values[row, :, :, head] = values[self.sender_row[order], :, :, head]


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
            "the model answers at least one pair right, else there is nothing to explain",
            f"none of {len(tokens)}",
            "Choose a task that the model does, or another model.",
        )
    chosen = right[:pairs]
    return tokens.subset(chosen.tolist()), clean[chosen], corrupt[chosen], len(right), len(clean)


def _ld(tokens: TokenPairs, index: int, logits: list[Tensor]) -> Float[np.ndarray, " n_row"]:
    """Return the logit difference of every row of one pair, float64."""
    values = torch.cat(logits).to("cpu", torch.float64)
    n_right = len(tokens.answers[index])
    difference: Float[np.ndarray, " n_row"] = (
        values[:, :n_right].logsumexp(1) - values[:, n_right:].logsumexp(1)
    ).numpy()
    return difference


def _effects(
    model: Model,
    tokens: TokenPairs,
    parts: Sequence[tuple[int, int | None]],
    components: str,
    progress: bool,
    cache: bool,
    engine: Engine,
    memory_bytes: int,
) -> Float[np.ndarray, "n_pairs n_part"]:
    """Return LD(clean) - LD(part patched) for every pair and part, parts in the order given."""
    effects = np.empty((len(tokens), len(parts)))
    paths = [_cache_path(model, tokens, index, components) if cache else None for index in range(len(tokens))]
    missing = [index for index, path in enumerate(paths) if not _read(path, effects[index])]
    if not missing:
        return effects
    by_layer = sorted(range(len(parts)), key=lambda part: parts[part][0])
    plan = _Patches([parts[part] for part in by_layer])
    todo = tokens.subset(missing)
    with progress_bar("patching", total=len(missing) if progress else 0) as advance:

        def done(indices: list[int], logits: list[list[Tensor]]) -> None:
            for index, values in zip(indices, logits, strict=True):
                found = _ld(todo, index, values)
                row = effects[missing[index]]
                row[by_layer] = found[0] - found[2:]
                _write(paths[missing[index]], row)
            advance(len(indices))

        run(model, todo, plan, done=done, engine=engine, memory_bytes=memory_bytes)
    return effects


def _cache_path(model: Model, tokens: TokenPairs, index: int, components: str) -> Path:
    """Name a pair's effects after everything they depend on."""
    model_key = [_VERSION, model.checksum, str(model.dtype), model.device.type, components]
    pair_key = [tokens.clean[index], tokens.corrupt[index], tokens.answers[index], tokens.wrong_answers[index]]
    folder, file = (checksum(json.dumps(key).encode())[:24] for key in (model_key, pair_key))
    return cache_dir() / "truths" / folder / f"{file}.safetensors"


def _read(path: Path | None, row: Float[np.ndarray, " n_part"]) -> bool:
    """Fill ``row`` from the cache; False where it is not there, or not whole."""
    if path is None or not path.is_file():
        return False
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)["effects"]
    except (SafetensorError, KeyError, OSError):
        return False
    if found.shape != row.shape or found.dtype != row.dtype:
        return False
    row[:] = found
    return True


def _write(path: Path | None, row: Float[np.ndarray, " n_part"]) -> None:
    if path is None:
        return
    from safetensors.numpy import save_file

    with atomic_write(path) as temporary:
        save_file({"effects": row.copy()}, temporary)
