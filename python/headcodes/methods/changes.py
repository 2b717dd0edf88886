"""How much a head's or an MLP's output changes between the prompts of a pair: to the answer, and to the stream."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from headcodes.activations.capture import mlps_of
from headcodes.interventions.runs import Batch, batches
from headcodes.methods.dla import answer_direction
from headcodes.models.devices import EachDevice, brought
from headcodes.models.hooks import as_found, capture_inputs, capture_outputs, edit_input
from headcodes.models.memory import batch_bytes, bytes_per_token
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs


def changes(
    model: Model, tokens: TokenPairs, mlps: bool = False
) -> tuple[Float[np.ndarray, "n_layers n_column"], Float[np.ndarray, "n_layers n_column"]]:
    """Return the mean change of every head to the answer (logits, unsigned) and to the stream (a share of its square).

    One forward pass over both prompts of each pair, side by side; of a layer no more is kept than its heads' changes
    at the last position and a number a token. Where the model has no known final norm, nothing speaks to the answer.

    Args:
        mlps: add a column for each layer's MLP; its output is taken before any norm behind it.
    """
    mlp_modules = mlps_of(model) if mlps else []
    to_answer = torch.zeros(model.n_layers, model.n_heads + mlps, dtype=torch.float64)
    to_stream = torch.zeros_like(to_answer)
    # A token of a pair runs twice.
    per_token, at_once = 2 * bytes_per_token(model), batch_bytes(model.device)
    with as_found(model.module), torch.inference_mode(), progress("measuring", total=len(tokens)) as advance:
        for batch in batches(tokens, per_token, at_once):
            seen = _Seen(model, tokens, batch, mlp_modules)
            with seen.watching():
                logits = model.trace(seen.ids, logits_at=seen.last, vocab=batch.vocab)
            assert logits is not None
            to_stream += brought(seen.shares())
            if model.final_norm is not None:
                to_answer += brought(seen.to_answer(logits[: len(batch.rows)]))
            advance(len(batch.rows))
    return (to_answer / len(tokens)).numpy(), (to_stream / len(tokens)).numpy()


@dataclass
class _Seen:
    """What one pass over a batch shows, layer by layer, each on its own device.

    Attributes:
        ids, last: token ids, clean prompts first, then corrupted ones, filled up on the right; their last positions.
        mlps: every layer's MLP; empty where they are not looked at.
        to_stream, mlps_to_stream: every layer's changes to the stream, summed over the batch, [n_heads] and [1].
        at_last: every layer's changes of z at the last position [n_pair, n_heads, d_head].
        mlps_at_last: every MLP's change at the last position [n_pair, d_model].
    """

    model: Model
    tokens: TokenPairs
    batch: Batch
    mlps: list[nn.Module]
    to_stream: list[Tensor] = field(default_factory=list)
    mlps_to_stream: list[Tensor] = field(default_factory=list)
    at_last: list[Tensor] = field(default_factory=list)
    mlps_at_last: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        corrupt = [self.tokens.corrupt[pair] for pair in self.batch.rows]
        sides = [self.batch.clean, self.batch.corrupt]
        width = max(side.shape[1] for side in sides)
        # Any id serves behind a prompt's end: no token sees a later one.
        self.ids = torch.cat([torch.nn.functional.pad(side, (0, width - side.shape[1])) for side in sides])
        self.last = torch.cat([self.batch.last, torch.tensor([len(ids) - 1 for ids in corrupt])])
        self._places = EachDevice(*_aligned(self.tokens, self.batch))
        self._squares: Tensor
        self._final: Tensor

    def watching(self) -> ExitStack:
        """Hang the hooks in; they are out again when the context ends."""
        model, hooks = self.model, ExitStack()
        for block in model.layers:
            hooks.enter_context(edit_input(block, self._stream))
        hooks.enter_context(capture_inputs(model.projections, self._heads))
        hooks.enter_context(capture_outputs(self.mlps, self._mlp))
        if model.final_norm is not None:
            hooks.enter_context(edit_input(model.final_norm, self._end))
        return hooks

    def _stream(self, x: Tensor) -> Tensor:
        self._squares = x.float().square().sum(-1)
        return x

    def _end(self, x: Tensor) -> Tensor:
        self._final = x
        return x

    def _heads(self, layer: int, x: Tensor) -> None:
        model = self.model
        clean_row, corrupt_row, ours, theirs, end = self._places.on(x.device)
        z = model.by_head(layer, x.float())
        difference = z[clean_row, ours] - z[corrupt_row, theirs]  # [position, head, d_head]
        weights = model.W_O[layer].to(x.device).float()
        gram = weights @ weights.transpose(-1, -2)
        square = torch.einsum("phd,hde,phe->ph", difference, gram, difference).clamp_min(0)
        self.to_stream.append(self._share(square))
        self.at_last.append(difference[end])

    def _share(self, square: Float[Tensor, "position n"]) -> Float[Tensor, " n"]:
        """Return squares as shares of the square of the stream that enters the layer, summed over positions."""
        clean_row, corrupt_row, ours, theirs, _ = self._places.on(square.device)
        squares = self._squares.to(square.device)
        stream = squares[clean_row, ours] + squares[corrupt_row, theirs]
        return (square / (stream / 2)[:, None]).sum(0)

    def _mlp(self, _layer: int, output: Tensor) -> None:
        clean_row, corrupt_row, ours, theirs, end = self._places.on(output.device)
        output = output.float().reshape(*self.ids.shape, -1)  # OPT puts all tokens into one row
        difference = output[clean_row, ours] - output[corrupt_row, theirs]
        share = self._share(difference.square().sum(-1, keepdim=True))
        self.mlps_to_stream.append(share)
        self.mlps_at_last.append(difference[end])

    def shares(self) -> list[Float[Tensor, " n_column"]]:
        """Return every layer's changes to the stream, the MLP's last where it is looked at."""
        if not self.mlps:
            return self.to_stream
        sides = zip(self.to_stream, self.mlps_to_stream, strict=True)
        return [torch.cat([heads, mlp.to(heads.device)]) for heads, mlp in sides]

    def to_answer(self, logits: Float[Tensor, "n_pair n_vocab"]) -> list[Float[Tensor, " n_heads"]]:
        """Return every layer's changes to the answer, summed over the batch."""
        direction = answer_direction(self.model, self.batch, logits, self._final)
        said = []
        for layer, difference in enumerate(self.at_last):
            weights = self.model.W_O[layer].to(difference.device).float()
            read = direction.to(difference.device)
            found = torch.einsum("phd,hdm,pm->ph", difference, weights, read).abs().sum(0)
            if self.mlps:
                mlp = (self.mlps_at_last[layer].to(read) * read).sum(1).abs().sum(0, keepdim=True)
                found = torch.cat([found, mlp])
            said.append(found)
        return said


def _aligned(tokens: TokenPairs, batch: Batch) -> tuple[Int[Tensor, " position"], ...]:
    """Return, of all that is compared, the clean prompt's row, the corrupted one's, the position in either; and which
    of these are the last positions.

    From the first token in which the prompts differ to the end of the shorter one, both counted from the end.
    """
    rows: list[int] = []
    ours: list[int] = []
    theirs: list[int] = []
    ends: list[int] = []
    for row, pair in enumerate(batch.rows):
        clean, corrupt = tokens.clean[pair], tokens.corrupt[pair]
        shorter = min(len(clean), len(corrupt))
        alike = next((i for i in range(shorter) if clean[i] != corrupt[i]), shorter - 1)
        n = shorter - alike
        rows += [row] * n
        ours += range(len(clean) - n, len(clean))
        theirs += range(len(corrupt) - n, len(corrupt))
        ends.append(len(rows) - 1)
    clean_row = torch.tensor(rows)
    return clean_row, clean_row + len(batch.rows), torch.tensor(ours), torch.tensor(theirs), torch.tensor(ends)
