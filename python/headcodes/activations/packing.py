"""Packing prompts into batches: short ones share a row behind a mask of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headcodes.settings import Positions

if TYPE_CHECKING:
    from jaxtyping import Float, Int


# From so many tokens on, products run at a CPU's full speed.
_FULL_TOKENS = 384


@dataclass
class Row:
    """One row of a forward pass: prompts that begin alike, their common beginning once.

    ``ids``: the tokens. ``places``: each one's position in its prompt. ``paths``: for each of ``prompts``, where its
    tokens lie in the row, in order; a token sees those on the paths that lead to it.
    """

    prompts: list[int]
    ids: list[int]
    places: list[int]
    paths: list[list[int]]


def pack(tokens: Sequence[Sequence[int]], longest_shared: int) -> list[Row]:
    """Put prompts that share at least half of themselves into one row, where that saves a tenth of all tokens.

    Clean and corrupted prompts differ late, so a pair runs as one row and a common beginning is computed once. A row
    holds at most twice the tokens of its first prompt: what is masked out still costs attention.
    """

    def alone(prompt: int) -> Row:
        places = list(range(len(tokens[prompt])))
        return Row([prompt], list(tokens[prompt]), places, [places.copy()])

    separate = [alone(prompt) for prompt in range(len(tokens))]
    if max(map(len, tokens)) > longest_shared:
        return separate
    shared: list[Row] = []
    order = sorted(range(len(tokens)), key=lambda prompt: list(tokens[prompt]))
    for prompt in order:
        ids = list(tokens[prompt])
        if shared:
            row = shared[-1]
            before = tokens[row.prompts[-1]]
            common = next(
                (k for k, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids))
            )
            if 2 * common >= len(ids) and len(row.ids) + len(ids) - common <= 2 * len(row.paths[0]):
                start = len(row.ids)
                row.prompts.append(prompt)
                row.ids += ids[common:]
                row.places += range(common, len(ids))
                row.paths.append([*row.paths[-1][:common], *range(start, len(row.ids))])
                continue
        shared.append(alone(prompt))
    saved = 1 - sum(len(row.ids) for row in shared) / sum(map(len, tokens))
    return shared if saved >= 0.1 else separate


def pack_pairs(tokens: Sequence[Sequence[int]], longest_shared: int) -> list[list[Row]]:
    """Put the two prompts of a pair, one from either half of ``tokens``, into one row, or into two that stay together.

    Returns:
        Each pair's rows, for ``cut``.
    """
    n_pairs = len(tokens) // 2
    pairs = []
    for pair in range(n_pairs):
        rows = pack([tokens[pair], tokens[n_pairs + pair]], longest_shared)
        pairs.append([replace(row, prompts=[pair + n_pairs * side for side in row.prompts]) for row in rows])
    return pairs


def padded(batch: Sequence[Row], dtype: torch.dtype) -> tuple[Int[Tensor, "batch seq"], dict[str, Tensor]]:
    """Return token ids, filled up on the right, and what the model must be told where rows hold several prompts.

    Rows are filled up with their own last token: any id serves, and no special one sets off a warning. One prompt a
    row needs no mask, since no token sees a later one.
    """
    length = max(len(row.ids) for row in batch)
    ids = torch.tensor([[*row.ids, *[row.ids[-1]] * (length - len(row.ids))] for row in batch])
    if all(len(row.prompts) == 1 for row in batch):
        return ids, {}
    places = torch.zeros(len(batch), length, dtype=torch.long)
    # Every token sees itself, padding too: a softmax over nothing would be NaN.
    seen = torch.eye(length, dtype=torch.bool).repeat(len(batch), 1, 1)
    for index, row in enumerate(batch):
        places[index, : len(row.places)] = torch.tensor(row.places)
        for path in row.paths:
            tokens = torch.tensor(path)
            seen[index, tokens[:, None], tokens[None]] = torch.ones(len(path), len(path), dtype=torch.bool).tril()
    mask = torch.zeros(len(batch), 1, length, length, dtype=dtype).masked_fill(~seen[:, None], -torch.inf)
    return ids, {"position_ids": places, "attention_mask": mask}


def cut(
    units: Sequence[Sequence[Row]], bytes_per_token: int, bytes_per_prompt: int, memory_bytes: int
) -> Iterator[list[Row]]:
    """Cut rows, sorted by length, into batches whose padded tokens fit the memory; at least one unit each.

    A batch that is large enough already ends before a row that would fill a sixteenth of it with padding.

    Args:
        units: rows that run in one batch: mostly one, or the rows of ``pack_pairs``.
    """
    batch: list[Row] = []
    n_prompts = n_tokens = 0
    for unit in sorted(units, key=lambda unit: (max(len(row.ids) for row in unit), [row.prompts for row in unit])):
        longest, prompts = max(len(row.ids) for row in unit), sum(len(row.prompts) for row in unit)
        # A mask has one entry of at most four bytes for every two tokens of a row.
        per_row = longest * (bytes_per_token + 4 * longest)
        needed = (len(batch) + len(unit)) * per_row + (n_prompts + prompts) * bytes_per_prompt
        padding = len(batch) * longest - n_tokens
        if batch and (needed > memory_bytes or (n_tokens >= _FULL_TOKENS and padding * 16 > n_tokens)):
            yield batch
            batch, n_prompts, n_tokens = [], 0, 0
        batch += unit
        n_prompts += prompts
        n_tokens += sum(len(row.ids) for row in unit)
    if batch:
        yield batch


def position_weights(
    batch: Sequence[Row], positions: Positions
) -> tuple[Float[Tensor, "batch n_prompt seq"], tuple[Tensor, Tensor], Int[Tensor, "n 2"]]:
    """Return the share each token of a row has in each of its prompts' means; where prompts and their last tokens
    are.

    The second value indexes the first by (row, place in the row) for all prompts one after another; the third holds
    (row, position) of each prompt's last token.
    """
    length = max(len(row.ids) for row in batch)
    owners, last, chosen = [], [], []
    for index, row in enumerate(batch):
        for place, (prompt, path) in enumerate(zip(row.prompts, row.paths, strict=True)):
            if positions == "mean":
                chosen.append(path)
            elif positions == "last":
                chosen.append(path[-1:])
            else:
                chosen.append([path[int(position)] for position in positions[prompt]])
            owners.append((index, place))
            last.append((index, path[-1]))
    rows, places = np.array(owners).T
    weights = np.zeros((len(batch), max(len(row.prompts) for row in batch), length), dtype=np.float32)
    counts = np.array([len(tokens) for tokens in chosen])
    # A position that is named twice counts twice.
    at = rows.repeat(counts), places.repeat(counts), np.concatenate(chosen)
    np.add.at(weights, at, (1 / counts).astype(np.float32).repeat(counts))
    return torch.from_numpy(weights), (torch.from_numpy(rows), torch.from_numpy(places)), torch.tensor(last)
