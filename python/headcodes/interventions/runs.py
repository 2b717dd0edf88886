"""Forward and backward passes over prompt pairs that return every part of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from headcodes.errors import HeadcodesError
from headcodes.models.hooks import Edit, as_found, edit_input, edit_output
from headcodes.prompts.task_check import logit_difference

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from headcodes.models.model import Model
    from headcodes.prompts.alignment import Alignment
    from headcodes.prompts.tokens import TokenPairs


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers that judge some pairs.

    Attributes:
        vocab: every answer's token id, ascending; right, wrong: which of them are each row's answers.
    """

    vocab: Int[Tensor, " n_vocab"]
    right: Bool[Tensor, "batch n_vocab"]
    wrong: Bool[Tensor, "batch n_vocab"]

    @classmethod
    def of(cls, tokens: TokenPairs, rows: Sequence[int]) -> Answers:
        """Return those of some pairs; the vocabulary is that of all pairs."""
        vocab = sorted({token for ids in tokens.scored_ids for token in ids})
        column = {token: place for place, token in enumerate(vocab)}

        def marked(answers: list[list[int]]) -> Tensor:
            mask = torch.zeros(len(rows), len(vocab), dtype=torch.bool)
            for place, row in enumerate(rows):
                mask[place, [column[token] for token in answers[row]]] = True
            return mask

        return cls(vocab=torch.tensor(vocab), right=marked(tokens.answers), wrong=marked(tokens.wrong_answers))


@dataclass(frozen=True, kw_only=True)
class Batch(Answers):
    """Pairs of one length or nearly so, filled up on the right, and the answers that judge them.

    Attributes:
        rows: which pairs these are.
        clean, corrupt: token ids. Pair by pair of one length, so positions correspond.
        last: each prompt's last position.
    """

    rows: list[int]
    clean: Int[Tensor, "batch seq"]
    corrupt: Int[Tensor, "batch seq"]
    last: Int[Tensor, " batch"]

    def logit_diff(self, logits: Float[Tensor, "batch n_vocab"]) -> Float[Tensor, " batch"]:
        """Return ``logit_difference`` of every row."""
        chosen = (self.right.to(logits.device), self.wrong.to(logits.device))
        return logit_difference(*(logits.masked_fill(~side, -torch.inf) for side in chosen))


def require_equal_lengths(tokens: TokenPairs, method: str) -> None:
    """Raise where the two prompts of a pair differ in length.

    Raises:
        HeadcodesError: they do; the message names the first such pair.
    """
    for index, (clean, corrupt) in enumerate(zip(tokens.clean, tokens.corrupt, strict=True)):
        if len(clean) != len(corrupt):
            raise HeadcodesError(
                f"{method} compares the two prompts of a pair by position, so they must have equally many tokens",
                f"{len(clean)} and {len(corrupt)} at prompt {index}",
                "Reword the pair, or use a method that does not: default, paper, mean-diff.",
            )


def batches(tokens: TokenPairs, bytes_per_token: int, memory_bytes: int) -> Iterator[Batch]:
    """Cut pairs, sorted by length, into batches whose padded tokens fit ``memory_bytes``; at least one pair each.

    How they are cut follows from lengths and sizes alone, so that the same call gives the same bits again.
    """
    order = sorted(range(len(tokens)), key=lambda row: (len(tokens.clean[row]), row))
    chunk: list[int] = []
    for place, row in enumerate(order):
        chunk.append(row)
        following = order[place + 1] if place + 1 < len(order) else None
        if following is None or (len(chunk) + 1) * len(tokens.clean[following]) * bytes_per_token > memory_bytes:
            yield _batch(tokens, chunk)
            chunk = []


def _batch(tokens: TokenPairs, rows: list[int]) -> Batch:
    lengths = [len(tokens.clean[row]) for row in rows]

    def padded(prompts: list[list[int]]) -> Tensor:
        width = max(len(prompts[row]) for row in rows)
        return torch.tensor([[*p, *[p[-1]] * (width - len(p))] for p in (prompts[row] for row in rows)])

    answers = Answers.of(tokens, rows)
    return Batch(
        rows=rows,
        clean=padded(tokens.clean),
        corrupt=padded(tokens.corrupt),
        last=torch.tensor(lengths) - 1,
        vocab=answers.vocab,
        right=answers.right,
        wrong=answers.wrong,
    )


def chosen_positions(
    batch: Batch, positions: Literal["mean", "last", "given"] | Sequence[Sequence[int]]
) -> Float[Tensor, "batch seq 1"] | None:
    """Return 1 at the positions of each row's clean prompt that count, else 0; None where all do.

    Args:
        positions: as ``Settings.positions``: lists are a prompt's, clean prompts first.
    """
    if positions == "mean":
        return None
    mask = torch.zeros(*batch.clean.shape, 1)
    for row, pair in enumerate(batch.rows):
        places = [int(batch.last[row])] if isinstance(positions, str) else list(positions[pair])
        mask[row, places] = 1
    return mask


# Where in a prompt a head acts: a token in which the two prompts differ, one between the first of these and the
# last, the last. Before the first change the two prompts are one.
POSITION_GROUPS = ("changed", "between", "last")


def position_groups(
    batch: Batch,
    positions: Literal["mean", "last", "given"] | Sequence[Sequence[int]] = "mean",
    alignment: Alignment | None = None,
) -> Float[Tensor, "batch seq n_group"]:
    """Return which of ``POSITION_GROUPS`` each position is in, then at which place of ``alignment`` it lies, 0 or 1 in
    each; 0 in all where it does not count (``chosen_positions``)."""
    at = torch.arange(batch.clean.shape[1])[None]
    last, inside = at == batch.last[:, None], at <= batch.last[:, None]
    changed = (batch.clean != batch.corrupt) & inside & ~last
    groups = torch.stack([changed, inside & ~changed & ~last, last], -1).float()
    if alignment is not None:
        places = torch.zeros(*batch.clean.shape, len(alignment.labels))
        for row, pair in enumerate(batch.rows):
            here = torch.tensor(alignment.of_tokens[pair])
            places[row, : len(here)] = (here[:, None] == torch.arange(places.shape[-1])).float()
        groups = torch.cat([groups, places], -1)
    chosen = chosen_positions(batch, positions)
    return groups if chosen is None else groups * chosen


@dataclass
class Parts:
    """What one pass left behind, layer by layer, as it ran: tensors of the graph where gradients are on.

    Attributes:
        input: what enters the first layer.
        z: every layer's head results side by side, before the output projection.
        mlp: every layer's MLP output (empty for attention-only models), before any norm that follows.
        logits: fp32, of the batch's answers at each prompt's last position.
    """

    input: Float[Tensor, "batch seq d_model"]
    z: list[Float[Tensor, "batch seq n_heads*d_head"]]
    mlp: list[Float[Tensor, "batch seq d_model"]]
    logits: Float[Tensor, "batch n_vocab"]

    def get(self, kind: str, layer: int) -> Tensor:
        """Return one part: "input", or "z" or "mlp" of a layer."""
        return self.input if kind == "input" else (self.z if kind == "z" else self.mlp)[layer]


@contextmanager
def ready(model: Model) -> Iterator[None]:
    """Evaluation mode, and weights that no gradient is worked out for; both are given back as they were found."""
    asked = {name for name, part in model.module.named_parameters() if part.requires_grad}
    try:
        model.module.requires_grad_(False)
        with as_found(model.module):
            yield
    finally:
        for name, part in model.module.named_parameters():
            # Offloaded weights are new ones each time; those fetched in inference mode can be asked for no gradient.
            if name in asked and not part.is_inference():
                part.requires_grad_(True)


@dataclass(frozen=True)
class Edits:
    """What to put in place of a part while the model runs: functions from the tensor found to the one that goes on.

    Attributes:
        input: of what enters the first layer. z: by layer, of the head results. mlp: by layer, of the MLP's output.
    """

    input: Edit | None = None
    z: Mapping[int, Edit] = field(default_factory=dict)
    mlp: Mapping[int, Edit] = field(default_factory=dict)


NO_EDITS = Edits()


def run(
    model: Model,
    tokens: Int[Tensor, "batch seq"],
    batch: Batch,
    *,
    edits: Edits = NO_EDITS,
    also: AbstractContextManager[Any] | None = None,
    whole_vocabulary: bool = False,
) -> Parts:
    """Run the model over ``tokens`` and return its parts.

    With gradients on, the graph begins at the first layer's input. Must be called inside ``ready``.

    Args:
        batch: says where the last positions are and which answers' logits to take.
        edits: what to change on the way. An edit sees the tensor as it is; its result is what ``Parts`` holds.
        also: a context that registers further hooks, behind the ones here.
        whole_vocabulary: return the logits of all tokens, not only of the batch's answers.
    """
    kept: dict[str, Tensor] = {}
    z: dict[int, Tensor] = {}
    mlp: dict[int, Tensor] = {}

    def first(x: Tensor) -> Tensor:
        if edits.input is not None:
            x = edits.input(x)
        if torch.is_grad_enabled():
            x = x.detach().requires_grad_(True)
        kept["input"] = x
        return x

    def head_results(layer: int) -> Edit:
        def keep(x: Tensor) -> Tensor:
            z[layer] = edits.z[layer](x) if layer in edits.z else x
            return z[layer]

        return keep

    def mlp_output(layer: int) -> Edit:
        def keep(x: Tensor) -> Tensor:
            mlp[layer] = edits.mlp[layer](x) if layer in edits.mlp else x
            # Falcon adds the attention's output to this very tensor; what is kept must stay what the MLP put out.
            return mlp[layer].clone()

        return keep

    with ExitStack() as hooks:
        hooks.enter_context(edit_input(model.layers[0], first))
        for layer, projection in enumerate(model.projections):
            hooks.enter_context(edit_input(projection, head_results(layer)))
            part = model.mlp(layer)
            if part is not None:
                hooks.enter_context(edit_output(part, mlp_output(layer)))
        if also is not None:
            hooks.enter_context(also)
        logits = model.trace(tokens, logits_at=batch.last, vocab=None if whole_vocabulary else batch.vocab)
    assert logits is not None
    return Parts(kept["input"], [z[layer] for layer in sorted(z)], [mlp[layer] for layer in sorted(mlp)], logits)
