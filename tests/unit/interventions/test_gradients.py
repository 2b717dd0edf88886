"""Backward passes a layer at a time: the same bits as in one go, and a bound on what they hold."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import made_pairs
from headcodes.interventions import gradients
from headcodes.interventions.reads import edge_bytes_per_token
from headcodes.interventions.runs import batches, ready
from headcodes.methods import Level, attribution, eap, hisp
from headcodes.methods.inputs import Inputs
from headcodes.models.load import load_model
from headcodes.models.memory import (
    kept_bytes_per_token,
    kept_pattern_bytes,
    node_bytes_per_token,
    parts_bytes_per_token,
)
from headcodes.models.model import Model
from tiny_families import FURTHER, ROWS, known, make

token_pairs = partial(made_pairs.token_pairs, n=3, seed=3, lengths=(7, 6), n_right=(2,), n_wrong=(3,), n_vocab=97)


def everything(model: Model) -> list[np.ndarray]:
    """What methods with gradients find, node level."""
    found = [attribution.products(model, token_pairs()).of_pairs.numpy()]
    found.append(hisp.find("hisp", Inputs(model, token_pairs()), "node", 0).head_scores)
    for method in ("eap", "eap-ig-inputs", "eap-ig-activations"):
        scores = eap.find(method, Inputs(model, token_pairs()), "node", 0)
        assert scores.signed is not None
        found += [scores.signed, np.array(list(scores.other_nodes.values()))]
    return found


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Falcon, multi-query", "Gemma 2", "Granite", "gpt-oss", "LFM2"])
def test_a_layer_at_a_time_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known(name):
        pytest.skip(f"the installed transformers does not know {name}")
    model = load_model(make(name))
    whole = everything(model)
    monkeypatch.setattr(gradients, "graph_bytes", lambda device: 0)
    for found, expected in zip(everything(model), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


class Held:
    """How many bytes autograd holds for a backward pass, weights left out; the most of it at any time."""

    def __init__(self, model: Model) -> None:
        self.weights = {part.untyped_storage().data_ptr() for part in model.module.parameters()}
        self.now, self.most = 0, 0
        self.counts: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        box = _Box(tensor)
        if place not in self.weights:
            self.counts[place] = self.counts.get(place, 0) + 1
            self.now += size if self.counts[place] == 1 else 0
            self.most = max(self.most, self.now)
            weakref.finalize(box, self.drop, place, size)
        return box

    def drop(self, place: int, size: int) -> None:
        self.counts[place] -= 1
        self.now -= size if self.counts[place] == 0 else 0


class _Box:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Gemma 2", "OLMoE"])
def test_a_backward_pass_holds_what_is_foretold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {"n_layer": 6} if name == "GPT-2" else {"num_hidden_layers": 6}
    model = load_model(make(name, **layers))
    batch = next(batches(token_pairs(n=4, lengths=(40,)), 1, 1 << 30))
    n_tokens = batch.clean.numel()

    def most() -> int:
        held = Held(model)
        with ready(model), torch.autograd.graph.saved_tensors_hooks(held.pack, lambda box: box.tensor):
            gradients.with_gradients(model, batch, "logit-diff")
        return held.most

    whole = most()
    foretold = node_bytes_per_token(model) * n_tokens
    assert foretold / 4 <= whole <= foretold
    monkeypatch.setattr(gradients, "graph_bytes", lambda device: 0)
    by_layer = most()
    assert by_layer <= whole / 3
    assert by_layer <= node_bytes_per_token(model) / model.n_layers * n_tokens
    assert kept_bytes_per_token(model) * n_tokens < foretold


class Live(TorchDispatchMode):
    """The most bytes that tensors made while open take together, beside the weights."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.most = 0
        # An operation also returns views of them: a matrix turned round, for one.
        self._weights = {part.untyped_storage()._cdata for part in model.module.parameters()}
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._weights:
                    self._known.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self._known = {place: each for place, each in self._known.items() if not each[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._known.values()))
        return made


# How many times what is held the lines may come to: six layers are few, and the line for one layer counts twice.
_SLACK = 2.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["GPT-2", "Llama", "Falcon, multi-query", "Gemma 2", "OLMoE", "gpt-oss", "dots.llm1", "Llama 4"]
)
def test_a_method_holds_no_more_than_is_foretold(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both runs' parts, their gradients and the graph: the lines of docs/performance.md."""
    if not known(name):
        pytest.skip(f"the installed transformers does not know {name}")
    sizes = {"n_layer": 6, "num_hidden_layers": 6, "intermediate_size": 112, "moe_intermediate_size": 56}
    sizes |= {"ffn_hidden_size": 128}
    values = (ROWS | FURTHER)[name][1]
    changes = {key: size for key, size in sizes.items() if key in values}
    if "layer_types" in values:
        changes["layer_types"] = values["layer_types"] * 3
    model = load_model(make(name, **changes).to(dtype))
    tokens, n_tokens = token_pairs(n=1, lengths=(60,)), 60
    model.W_O  # noqa: B018  # kept with the model, and counted with its weights

    def most(method: str, level: Level = "node") -> int:
        with Live(model) as live:
            if method == "attribution":
                attribution.products(model, tokens)
            elif method == "hisp":
                hisp.find(method, Inputs(model, tokens), level, 0)
            else:
                eap.find(method, Inputs(model, tokens), level, 0, steps=1)
        return live.most

    def foretold(method: str) -> int:
        beside = parts_bytes_per_token(model) * n_tokens if method.startswith("eap-ig") else 0
        return gradients.backward_bytes(model, n_tokens) + beside

    by_edge = edge_bytes_per_token(model) * n_tokens + kept_pattern_bytes(model, n_tokens)
    held = most("eap", "edge")
    assert held <= by_edge <= _SLACK * held
    methods = ["eap", "eap-ig-inputs", "attribution", "hisp"]
    if name in ("GPT-2", "OLMoE"):
        methods.append("eap-ig-activations")
    whole = {method: most(method) for method in methods}
    for method, held in whole.items():
        assert held <= foretold(method) <= _SLACK * held, method
    monkeypatch.setattr(gradients, "graph_bytes", lambda device: 0)
    for method, before in whole.items():
        held = most(method)
        assert held <= foretold(method) <= _SLACK * held, method
        assert held < before
