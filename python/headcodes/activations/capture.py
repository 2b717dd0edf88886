"""Every head's result on every prompt, from batched forward passes that keep nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from headcodes.activations.packing import (
    cut,
    pack,
    pack_pairs,
    padded,
    position_weights,
)
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.models.devices import EachDevice
from headcodes.models.hooks import as_found, capture_inputs, capture_outputs
from headcodes.models.memory import batch_bytes, bytes_per_token
from headcodes.models.model import Model
from headcodes.progress import progress
from headcodes.settings import Positions

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from headcodes.activations.packing import Row
    from headcodes.prompts.tokens import TokenPairs

# Pairs, the first ones, whose two prompts run in one batch, so that what changes between them can be measured in the
# same pass (``methods.changes``; more of them change its ranking little, docs/recipe.md). They do so whether or not
# it is measured: the same prompts give the same bits for every method.
N_SIDE_BY_SIDE = 64


class Watch(Protocol):
    """What looks at the batches of pairs while they run."""

    def watching(self, batch: Sequence[Row]) -> AbstractContextManager[object]:
        """Return a context around a batch's forward pass. A prompt's number is its place among those captured."""

    def answered(self, logits: Float[Tensor, "n_prompt n_vocab"]) -> None:
        """Take the batch's logits after each prompt's last token, in the order of its rows' prompts.

        The columns are all scored ids of the prompts captured, ascending.
        """


@dataclass(frozen=True)
class HeadActivations:
    """What each head found on each prompt, and how it writes it to the residual stream.

    Attributes:
        z: fp32, every head's result before the output projection, averaged over the positions asked for.
        W_O: every head's output weights, in the model's dtype. Heads are in layer-major order in both.
        positions: "mean", "last" or "given".
        mlps: fp32, every layer's MLP output, averaged likewise; None where it was not asked for.
    """

    z: Float[Tensor, "n_prompt n_component d_head"]
    W_O: Float[Tensor, "n_component d_head d_model"]
    n_layers: int
    n_heads: int
    positions: str
    mlps: Float[Tensor, "n_prompt n_layers d_model"] | None = None

    @property
    def n_component(self) -> int:
        """Number of heads in all layers."""
        return self.z.shape[1]

    def subset(self, rows: Sequence[int] | Int[Tensor, " n"] | slice) -> HeadActivations:
        """Return the same for some of the prompts."""
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows)
        return replace(self, z=self.z[index], mlps=None if self.mlps is None else self.mlps[index])

    def head_outputs(
        self,
        prompts: Sequence[int] | Int[Tensor, " n"] | slice = slice(None),
        components: Sequence[int] | Int[Tensor, " c"] | slice = slice(None),
    ) -> Float[Tensor, "n c d_model"]:
        """Return what heads write to the residual stream, z . W_O, in fp32, for some prompts and some heads.

        The projection's bias belongs to no head and is left out. The whole of it is d_model / d_head times as large
        as z: ask for the part that is needed.
        """
        columns = torch.arange(self.n_component, device=self.z.device)
        columns = columns[components if isinstance(components, slice) else torch.as_tensor(components).to(columns)]
        z = self.subset(prompts).z
        out = torch.empty(len(z), len(columns), self.W_O.shape[-1], device=z.device)
        # A layer's worth of heads at a time: only their weights are held in fp32.
        for start in range(0, len(columns), self.n_heads):
            here = columns[start : start + self.n_heads]
            out[:, start : start + self.n_heads] = torch.einsum("pcd,cdm->pcm", z[:, here], self.W_O[here].float())
        return out

    def layers(self) -> Iterator[slice]:
        """Yield which components are the heads of each layer."""
        for start in range(0, self.n_component, self.n_heads):
            yield slice(start, start + self.n_heads)


def capture(
    model: Model,
    tokens: Sequence[Sequence[int]],
    *,
    positions: Positions = "mean",
    answer_ids: Sequence[Sequence[int]] | None = None,
    memory_bytes: int | None = None,
    mlps: bool = False,
    pairs: bool = False,
    watch: Watch | None = None,
) -> tuple[HeadActivations, list[Float[Tensor, " n_answer"]] | None]:
    """Run a model over prompts and keep each head's result, averaged over positions in fp32.

    The mean of z over positions, through W_O, is the mean of the heads' outputs: the map is linear. Prompts that
    begin alike share one row, where the model's attention takes a mask: the common beginning is computed once. Rows
    run in batches of neighbours in length, the shorter ones filled up on the right; how many at a time follows from
    ``memory_bytes`` and the prompts alone, so that the same call gives the same bits again. The model is left as it
    was found, also after an error.

    Args:
        tokens: token ids of each prompt, BOS included where wanted.
        positions: "mean" over all of a prompt's tokens (BOS included), its "last", or the mean over given ones of
            each prompt.
        answer_ids: for each prompt, tokens whose logits after its last token are wanted; None: no logits are
            computed.
        memory_bytes: working memory of one forward pass to aim at, beside weights and result. None:
            ``batch_bytes``.
        mlps: whether to keep MLPs' outputs too.
        pairs: whether the prompts are two halves, whose prompts in the same place run in one batch, in one row where
            they begin alike.
        watch: what looks at the batches while they run; wants ``answer_ids``.

    Returns:
        The heads' results on ``model.device``, and for each prompt its fp32 logits (None where ``answer_ids`` is
        None).

    Raises:
        HeadcodesError: no prompts, an empty prompt, an unknown token, positions outside a prompt; MLPs of a model that
            has none, or of a family whose MLPs are unknown.
    """
    _check(model, tokens, positions, answer_ids)
    if memory_bytes is None:
        memory_bytes = batch_bytes(model.device)
    n_columns = model.n_heads * model.d_head
    z = torch.empty(len(tokens), model.n_layers * n_columns, dtype=torch.float32, device=model.device)
    outputs = torch.empty(len(tokens), model.n_layers, model.d_model, device=model.device) if mlps else None
    vocab = None if answer_ids is None else torch.tensor(sorted({token for ids in answer_ids for token in ids}))
    column = {} if vocab is None else {int(token): place for place, token in enumerate(vocab)}
    logits: list[Tensor] = [torch.empty(0)] * len(tokens)
    mlp_modules = mlps_of(model) if mlps else []
    units = pack_pairs(tokens, model.longest_shared) if pairs else [[row] for row in pack(tokens, model.longest_shared)]
    with as_found(model.module), torch.inference_mode(), progress("capturing", total=len(tokens)) as advance:
        # The unembedding writes every token's logit for each prompt, though few of them are kept.
        per_prompt = 0 if answer_ids is None else 4 * model.d_vocab
        for batch in cut(units, bytes_per_token(model), per_prompt, memory_bytes):
            prompts = [prompt for row in batch for prompt in row.prompts]
            weights, (owner, place), last = position_weights(batch, positions)
            rows_of_z, shares = torch.tensor(prompts, device=z.device), EachDevice(weights, owner, place)

            def keep(
                layer: int,
                x: Tensor,
                shares: EachDevice = shares,
                rows_of_z: Tensor = rows_of_z,
            ) -> None:
                weights, owner, place = shares.on(x.device)
                mean = torch.bmm(weights, x.float())[owner, place]
                heads = mean if model.d_heads[layer] == model.d_head else model.by_head(layer, mean).flatten(1)
                z[rows_of_z, layer * n_columns : (layer + 1) * n_columns] = heads.to(z.device)

            def keep_mlp(layer: int, x: Tensor, shares: EachDevice = shares, rows_of_z: Tensor = rows_of_z) -> None:
                weights, owner, place = shares.on(x.device)
                assert outputs is not None
                x = x.float().reshape(len(weights), -1, x.shape[-1])  # OPT puts all tokens into one row
                outputs[rows_of_z, layer] = torch.bmm(weights, x)[owner, place].to(outputs.device)

            ids, inputs = padded(batch, model.dtype)
            watching = nullcontext() if watch is None else watch.watching(batch)
            with watching, capture_inputs(model.projections, keep), capture_outputs(mlp_modules, keep_mlp):
                found = model.trace(
                    ids,
                    logits_at=None if answer_ids is None else last,
                    vocab=vocab,
                    **{name: part.to(model.device) for name, part in inputs.items()},
                )
            if found is not None and answer_ids is not None:
                if watch is not None:
                    watch.answered(found)
                wanted = [[column[token] for token in answer_ids[prompt]] for prompt in prompts]
                longest = max(map(len, wanted))
                places = torch.tensor([[*row, *[0] * (longest - len(row))] for row in wanted])
                for prompt, row, values in zip(prompts, wanted, found.cpu().gather(1, places).unbind(), strict=True):
                    logits[prompt] = values[: len(row)]
            advance(len(prompts))
    if not bool(z.isfinite().all()):
        prompt = int((~z.isfinite()).any(1).nonzero()[0])
        raise model.not_finite(torch.tensor([tokens[prompt]], device=model.device), {})
    heads = HeadActivations(
        z=z.view(len(tokens), model.n_components, model.d_head),
        W_O=model.W_O.flatten(0, 1),
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        positions=positions if isinstance(positions, str) else "given",
        mlps=outputs,
    )
    return heads, None if answer_ids is None else logits


def capture_pairs(
    model: Model,
    tokens: TokenPairs,
    *,
    positions: Positions = "mean",
    mlps: bool = False,
    watch: Watch | None = None,
) -> tuple[HeadActivations, list[Float[Tensor, " n_answer"]]]:
    """Capture all clean prompts, then all corrupted ones, with their scored ids' logits; ``capture`` for the rest.

    Args:
        watch: looks at the batches of the first ``N_SIDE_BY_SIDE`` pairs, which run apart from the others, clean
            prompts first.
    """
    n_pairs = len(tokens)
    together = min(N_SIDE_BY_SIDE, n_pairs)
    prompts, answers = tokens.clean + tokens.corrupt, tokens.scored_ids * 2

    def part(pairs: range, side_by_side: bool) -> tuple[HeadActivations, list[Tensor]]:
        rows = [*pairs, *(n_pairs + pair for pair in pairs)]
        found, logits = capture(
            model,
            [prompts[row] for row in rows],
            positions=positions if isinstance(positions, str) else [positions[row] for row in rows],
            answer_ids=[answers[row] for row in rows],
            mlps=mlps,
            pairs=side_by_side,
            watch=watch if side_by_side else None,
        )
        assert logits is not None
        return found, logits

    near, near_logits = part(range(together), True)
    if together == n_pairs:
        return near, near_logits
    far, far_logits = part(range(together, n_pairs), False)

    def joined(ours: Tensor, others: Tensor) -> Tensor:
        rest = n_pairs - together
        return torch.cat([ours[:together], others[:rest], ours[together:], others[rest:]])

    outputs = None if near.mlps is None or far.mlps is None else joined(near.mlps, far.mlps)
    clean = near_logits[:together] + far_logits[: n_pairs - together]
    corrupt = near_logits[together:] + far_logits[n_pairs - together :]
    return replace(near, z=joined(near.z, far.z), mlps=outputs), clean + corrupt


def mlps_of(model: Model) -> list[nn.Module]:
    """Return every layer's MLP.

    Raises:
        HeadcodesError: a layer without one.
    """
    found = [model.mlp(layer) for layer in range(model.n_layers)]
    known = [module for module in found if module is not None]
    if len(known) < len(found):
        raise HeadcodesError(
            "the model of a circuit with MLPs must have MLPs, of a known kind", f"{model!r}", "Ask for heads."
        )
    return known


def _check(
    model: Model,
    tokens: Sequence[Sequence[int]],
    positions: Positions,
    answer_ids: Sequence[Sequence[int]] | None,
) -> None:
    if not tokens:
        raise HeadcodesError("There must be prompts to run", "none", "Give at least one.")
    for row, ids in enumerate(tokens):
        if not ids:
            raise HeadcodesError("A prompt must have tokens", f"none in prompt {row}", "Leave empty prompts out.")
        model.check_length(len(ids), f"prompt {row}")
        if min(ids) < 0 or max(ids) >= model.d_vocab:
            raise HeadcodesError(
                f"Token ids must lie in 0..{model.d_vocab - 1}, this model's vocabulary",
                f"{min(ids)}..{max(ids)} in prompt {row}",
                "Use the model's own tokenizer.",
            )
    longest = max(range(len(tokens)), key=lambda row: len(tokens[row]))
    if model.facts.trained is not None and len(tokens[longest]) > model.facts.trained:
        warnings.warn(
            f"prompt {longest} has {len(tokens[longest])} tokens, and {model.name} was trained on {model.facts.trained}"
            " at most: it was not trained on more",
            HeadcodesWarning,
            stacklevel=3,
        )
    if isinstance(positions, str):
        if positions not in ("mean", "last"):
            raise HeadcodesError("positions must be mean, last or positions", repr(positions), "Leave it at mean.")
    else:
        if len(positions) != len(tokens):
            raise HeadcodesError(
                "There must be positions for every prompt",
                f"{len(positions)} for {len(tokens)} prompts",
                "Give one list each.",
            )
        for row, (places, ids) in enumerate(zip(positions, tokens, strict=True)):
            if not places or min(places) < 0 or max(places) >= len(ids):
                raise HeadcodesError(
                    f"Positions must lie in 0..{len(ids) - 1}, the tokens of prompt {row}",
                    f"{list(places)}",
                    "Count from the prompt's first token.",
                )
    if answer_ids is not None and len(answer_ids) != len(tokens):
        raise HeadcodesError(
            "There must be answers for every prompt",
            f"{len(answer_ids)} for {len(tokens)} prompts",
            "Give one list each.",
        )
