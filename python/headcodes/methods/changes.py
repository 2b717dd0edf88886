"""How much a head's or an MLP's output changes between the prompts of a pair: to the answer, and to the stream."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headcodes.activations.capture import mlps_of
from headcodes.interventions.runs import Answers
from headcodes.methods.dla import answer_direction
from headcodes.models.devices import EachDevice, brought
from headcodes.models.hooks import capture_inputs, capture_outputs, edit_input

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.activations.packing import Row
    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs


class Changes:
    """Watches a capture, and sums up the changes of every head to the answer and to the stream.

    Of a batch no more is kept than its heads' changes at the last position of each pair, and a number a token.

    Args:
        tokens: the pairs of whose capture this is the ``Watch``.
        n_pairs: how many of them, the first ones, are measured: those that run side by side at most.
        mlps: add a column for each layer's MLP; its output is taken before any norm behind it.
    """

    def __init__(self, model: Model, tokens: TokenPairs, n_pairs: int, mlps: bool = False) -> None:
        self.n_pairs = n_pairs
        self.n_seen = 0
        self.tokens = tokens
        self._model = model
        self._with_mlps = mlps
        self._to_answer = torch.zeros(model.n_layers, model.n_heads + mlps, dtype=torch.float64)
        self._to_stream = torch.zeros_like(self._to_answer)

    def means(self) -> dict[str, Float[Tensor, "n_layers n_column"]]:
        """Return the mean changes: "to_answer" (logits, unsigned) and "to_stream" (a share of its square).

        Where the model has no known final norm, the changes to the answer are 0.
        """
        assert self.n_seen == self.n_pairs
        return {"to_answer": self._to_answer / self.n_pairs, "to_stream": self._to_stream / self.n_pairs}

    def watching(self, batch: Sequence[Row]) -> ExitStack:
        """Hang hooks in for one batch; they are out again when the context ends."""
        self._find_pairs(batch)
        self._mlps = mlps_of(self._model) if self._with_mlps else []
        self._at_last: list[Tensor] = []
        self._mlps_at_last: list[Tensor] = []
        self._shares: list[Tensor] = []
        self._mlp_shares: list[Tensor] = []
        model, hooks = self._model, ExitStack()
        if not self._pairs:
            return hooks
        for block in model.layers:
            hooks.enter_context(edit_input(block, self._stream))
        hooks.enter_context(capture_inputs(model.projections, self._heads))
        hooks.enter_context(capture_outputs(self._mlps, self._mlp))
        if model.final_norm is not None:
            hooks.enter_context(edit_input(model.final_norm, self._end))
        return hooks

    def _find_pairs(self, batch: Sequence[Row]) -> None:
        """Note which pairs are in a batch, and where what is compared lies in it.

        From the first token in which the prompts differ to the end of the shorter one, both counted from the end.
        """
        n_prompts = len(self.tokens)
        self._shape = len(batch), max(len(row.ids) for row in batch)
        paths = {
            prompt: (index, path)
            for index, row in enumerate(batch)
            for prompt, path in zip(row.prompts, row.paths, strict=True)
        }
        order = list(paths)
        self._pairs = [prompt for prompt in order if prompt < self.n_pairs]
        clean: list[tuple[int, int]] = []
        corrupt: list[tuple[int, int]] = []
        ends: list[int] = []
        for pair in self._pairs:
            ours, theirs = self.tokens.clean[pair], self.tokens.corrupt[pair]
            shorter = min(len(ours), len(theirs))
            alike = next((place for place in range(shorter) if ours[place] != theirs[place]), shorter - 1)
            for where, prompt in ((clean, pair), (corrupt, n_prompts + pair)):
                row, path = paths[prompt]
                where += [(row, place) for place in path[alike - shorter :]]
            ends.append(len(clean) - 1)
        if self._pairs:
            self._places = EachDevice(*torch.tensor(clean).T, *torch.tensor(corrupt).T, torch.tensor(ends))
        self._asked = [place for place, prompt in enumerate(order) if prompt < self.n_pairs]

    def _stream(self, x: Tensor) -> Tensor:
        self._squares = x.float().square().sum(-1)
        return x

    def _end(self, x: Tensor) -> Tensor:
        row, place, _, _, end = self._places.on(x.device)
        self._final = x[row[end], place[end]]
        return x

    def _difference(self, x: Float[Tensor, "row seq n"]) -> Float[Tensor, "position n"]:
        """Return what ``x`` has at the positions compared, the clean prompts' less the corrupted ones'."""
        clean_row, clean_place, corrupt_row, corrupt_place, _ = self._places.on(x.device)
        return x[clean_row, clean_place].float() - x[corrupt_row, corrupt_place].float()

    def _share(self, square: Float[Tensor, "position n"]) -> Float[Tensor, " n"]:
        """Return squares as shares of the square of the stream that enters the layer, summed over positions."""
        clean_row, clean_place, corrupt_row, corrupt_place, _ = self._places.on(square.device)
        squares = self._squares.to(square.device)
        stream = squares[clean_row, clean_place] + squares[corrupt_row, corrupt_place]
        return (square / (stream / 2)[:, None]).sum(0)

    def _heads(self, layer: int, x: Tensor) -> None:
        difference = self._model.by_head(layer, self._difference(x))  # [position, head, d_head]
        weights = self._model.W_O[layer].to(x.device).float()
        gram = weights @ weights.transpose(-1, -2)
        square = torch.einsum("phd,hde,phe->ph", difference, gram, difference).clamp_min(0)
        self._shares.append(self._share(square))
        self._at_last.append(difference[self._places.on(x.device)[-1]])

    def _mlp(self, _layer: int, output: Tensor) -> None:
        difference = self._difference(output.reshape(*self._shape, -1))  # OPT puts all tokens into one row
        self._mlp_shares.append(self._share(difference.square().sum(-1, keepdim=True)))
        self._mlps_at_last.append(difference[self._places.on(output.device)[-1]])

    def answered(self, logits: Float[Tensor, "n_prompt n_vocab"]) -> None:
        """Take a batch's logits after each prompt's last token, and sum up what was seen of it."""
        if not self._pairs:
            return
        shares = self._shares
        if self._mlps:
            shares = [torch.cat([heads, mlp.to(heads)]) for heads, mlp in zip(shares, self._mlp_shares, strict=True)]
        self._to_stream += brought(shares)
        if self._model.final_norm is not None:
            self._to_answer += brought(self._answer(logits[self._asked]))
        self.n_seen += len(self._pairs)

    def _answer(self, logits: Float[Tensor, "n_pair n_vocab"]) -> list[Float[Tensor, " n_column"]]:
        """Return every layer's changes to the answer, summed over the batch, the MLP's last where it is looked at."""
        answers = Answers.of(self.tokens, self._pairs)
        direction = answer_direction(self._model, answers, logits, self._final)
        found = []
        for layer, difference in enumerate(self._at_last):
            weights = self._model.W_O[layer].to(difference.device).float()
            read = direction.to(difference.device)
            column = torch.einsum("phd,hdm,pm->ph", difference, weights, read).abs().sum(0)
            if self._mlps:
                mlp = (self._mlps_at_last[layer].to(read) * read).sum(1).abs().sum(0, keepdim=True)
                column = torch.cat([column, mlp])
            found.append(column)
        return found
