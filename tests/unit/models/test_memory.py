"""How large batches are: worked out by hand from the shapes of a model, and seen where it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from headcodes.activations.capture import capture
from headcodes.interventions.patch import causal_truth
from headcodes.interventions.runs import batches
from headcodes.models import memory
from made_pairs import flipped, made

LENGTH = 4


def rows_seen(model: Any, run: Callable[[], Any]) -> list[int]:
    """Return how many rows the last layer was called with, call by call."""
    seen: list[int] = []
    hook = model.layers[-1].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        run()
    finally:
        hook.remove()
    return seen


@pytest.fixture
def wide(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """Return a model and the bytes that one of its values is said to take: so many that few prompts fill a batch."""
    monkeypatch.setattr(memory, "_per_value", lambda _model: 1 << 12)
    return tiny_model("gpt2"), 1 << 12


def test_a_forward_pass_takes_64_mib(wide: tuple[Any, int]) -> None:
    model, per_value = wide
    d, columns = model.d_model, model.n_heads * model.d_head
    # The stream and what is written to it, four tensors of an MLP, queries, keys and values; z in fp32.
    per_token = per_value * (6 * d + 4 * 4 * d + 3 * columns) + 4 * columns
    fit = (64 << 20) // (LENGTH * (per_token + 4 * LENGTH))
    prompts = [[(7 * row + place) % 50 for place in range(LENGTH)] for row in range(fit + 1)]
    assert fit > 2
    assert rows_seen(model, lambda: capture(model, prompts)) == [fit, 1]


def test_a_graph_takes_a_gib(wide: tuple[Any, int]) -> None:
    model, per_value = wide
    d, columns = model.d_model, model.n_heads * model.d_head
    per_token = per_value * model.n_layers * (8 * d + 4 * 4 * d + 8 * columns)
    fit = (1 << 30) // (LENGTH * per_token)
    ids = [[1] * LENGTH] * (fit + 1)
    tokens = made(ids, ids, [[2]] * len(ids), [[3]] * len(ids))
    cut = batches(tokens, memory.node_bytes_per_token(model), memory.graph_bytes(torch.device("cpu")))
    assert [len(batch.rows) for batch in cut] == [fit, 1]


def test_edited_runs_take_128_mib(wide: tuple[Any, int]) -> None:
    model, per_value = wide
    tokens = flipped(model, made([[1, 2, 3, 4]], [[5, 2, 3, 4]], [[2]], [[3]]))
    d, columns = model.d_model, model.n_heads * model.d_head
    fit = (128 << 20) // (4 * per_value * (6 * d + 3 * 4 * d + 4 * columns))
    heads = fit - 1  # beside the run that checks the walk, once
    assert heads < model.n_components < 2 * heads
    seen = rows_seen(model, lambda: causal_truth(model, tokens, cache=False, progress=False))
    assert seen[-2:] == [fit, model.n_components - heads]
