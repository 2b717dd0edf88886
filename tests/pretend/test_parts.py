"""What methods stand on, called alone: on a pretended device, and on two, it finds what it finds on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tests.pretend.conftest import put
from tests.pretend.device import pretended

import headcodes
from headcodes.errors import HeadcodesWarning
from headcodes.evaluation.areas import head_cpr_cmd
from headcodes.evaluation.faithfulness import faithfulness
from headcodes.interventions import gradients
from headcodes.interventions.carried import carried_edges, composed_edges
from headcodes.interventions.patch import patch_effects
from headcodes.interventions.paths import path_effects
from headcodes.interventions.places import effects_by_place
from headcodes.interventions.verify import verify
from headcodes.methods import acdc
from headcodes.methods.attribution import products
from headcodes.methods.inputs import Inputs
from headcodes.prompts.alignment import align
from headcodes.prompts.tokens import TokenPairs
from made_pairs import token_pairs
from tiny_families import known, make

# Layers on several devices, and those that keep more than keys and values are not walked through.
pytestmark = pytest.mark.filterwarnings("ignore:whole forward passes")
PLACES = ("pretend:1", "both")
HEADS = [(0, 1), (1, 0), (2, 2)]
PATHS = [("a0.h1", "a2.h2<q>"), ("a0.h1", "a1.h0"), ("a1.h2", "logits")]
# Answered right, whatever the model says.
RIGHT = [1.0] * 3, [0.0] * 3


def layer_by_layer(model: Any, pairs: TokenPairs) -> Any:
    with mock.patch.object(gradients, "graph_bytes", return_value=1):
        return products(model, pairs).of_pairs


def cpr(model: Any, pairs: TokenPairs) -> Any:
    scores = np.arange(model.n_layers * model.n_heads).reshape(model.n_layers, -1)
    found = head_cpr_cmd(model, pairs, scores, shares=(0.2, 0.5))
    return [found["cpr"], found["cmd"]]


WHAT: dict[str, Callable[[Any, TokenPairs], Any]] = {
    "heads and MLPs patched": lambda m, p: verify(m, p, [(0, 1), (2, 3), (1, None)], known=RIGHT).effects,
    "patched, KL": lambda m, p: patch_effects(m, p, HEADS, "heads", False, False, metric="kl")[0],
    "paths": lambda m, p: path_effects(m, p, PATHS, known=RIGHT).effects,
    "places": lambda m, p: effects_by_place(m, p, [(0, 1), (2, None)], align(p)),
    "carried edges": lambda m, p: carried_edges(m, p, HEADS)[1],
    "composed edges": lambda m, p: composed_edges(m, HEADS)[1],
    "gradients": lambda m, p: products(m, p, mlps=True).of_pairs,
    "gradients by layer": layer_by_layer,
    "changes": lambda m, p: np.stack(list(Inputs(m, p, components="heads+mlps").changes().values())),
    "faithfulness": lambda m, p: faithfulness(m, p, [*HEADS, (1, None)], components="heads+mlps").faithfulness,
    "CPR and CMD": cpr,
}


def alike(found: Any, want: Any) -> None:
    found, want = np.asarray(found, dtype=float), np.asarray(want, dtype=float)
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4 * float(np.abs(want).max()))


@pytest.fixture(scope="module")
def part(placed: Callable[[str, str], Any]) -> Callable[[str, str, str], Any]:
    """``part(what, family, place)``: of the model that is ``placed`` there."""

    def find(what: str, family: str, place: str) -> Any:
        return WHAT[what](placed(family, place), token_pairs(3, lengths=(7,), places=((2,), (3,))))

    return cache(find)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("what", WHAT)
def test_parts(part: Callable[[str, str, str], Any], what: str, family: str, place: str) -> None:
    want = part(what, family, "cpu")
    with pretended() as log:
        found = part(what, family, place)
    assert log.n_operations
    alike(found, want)


@pytest.mark.parametrize("place", [*PLACES, "norm behind"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_model_is_opened_where_it_lies(tiny_hf: Any, tiny_tokenizer: Any, family: str, place: str) -> None:
    """What is found out by running it is what is found on the CPU."""
    model = headcodes.load_model(tiny_hf(family, tie_word_embeddings=True), tokenizer=tiny_tokenizer)
    with pretended(), mock.patch("headcodes.models.load.refuse_kind"):
        put(model, place)
        found = headcodes.load_model(model.module, tokenizer=tiny_tokenizer)
    assert str(next(found.layers[0].parameters()).device).startswith("pretend")
    unlike = {"sum_error": 0.0, "batch_error": 0.0}  # rounding
    assert replace(found.facts, **unlike) == replace(model.facts, **unlike)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", ["heads and MLPs patched", "gradients", "gradients by layer", "changes"])
@pytest.mark.parametrize("name", ["LFM2", "Qwen 3.5"])
def test_layers_without_heads(name: str, what: str, place: str) -> None:
    if not known(name):
        pytest.skip(f"the installed transformers does not know {name}")
    pairs = token_pairs(3, lengths=(7,), n_vocab=97)

    def find(place: str) -> Any:
        model = headcodes.load_model(make(name))
        put(model, place)
        real = next(layer for layer in range(model.n_layers) if layer not in model.without_heads)
        if what == "heads and MLPs patched":
            return verify(model, pairs, [(real, 1), (real, None)], known=RIGHT).effects
        if what == "gradients":
            return products(model, pairs).of_pairs
        return (
            layer_by_layer(model, pairs)
            if what == "gradients by layer"
            else Inputs(model, pairs).changes()["to_stream"]
        )

    want = find("cpu")
    with pretended():
        alike(find(place), want)


OPTIONS: dict[str, dict[str, Any]] = {
    "edges and the circuit": {"level": "edge"},
    "edges without gradients": {"method": "contrast", "level": "edge"},
    "MLPs as members": {"components": "heads+mlps"},
    "MLPs of contrast": {"method": "contrast", "components": "heads+mlps"},
    "MLPs of codes": {"method": "paper-scaled", "components": "heads+mlps"},
    "MLPs of eap": {"method": "eap", "components": "heads+mlps"},
    "MLPs patched": {"method": "patching", "components": "heads+mlps"},
    "a stable circuit": {"stable": 0.5},
    "paths patched": {"method": "patching", "level": "edge"},
    "edges of acdc": {"method": "acdc", "level": "edge"},
    "several seeds": {"method": "contrast", "seeds": [0, 1]},
    "another metric": {"method": "eap-ig-inputs", "metric": "kl"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_on_two_devices(tiny_hf: Any, tiny_tokenizer: Any, option: str) -> None:
    def find(place: str) -> Any:
        hf = tiny_hf("gpt2", tie_word_embeddings=True, n_layer=2 if "acdc" in option else 3)  # a pass an edge
        # Rounding decides which of a random model's edges lie above ACDC's threshold: as little of it as can be.
        model = headcodes.load_model(hf.double() if "acdc" in option else hf, tokenizer=tiny_tokenizer)
        put(model, place)
        pairs = headcodes.tasks.get("ioi").build(tiny_tokenizer, n=4, seed=0)
        # Few of a random model's edges matter more; and it does no task.
        with mock.patch.object(acdc, "THRESHOLDS", (1e-6,)), pytest.warns(HeadcodesWarning):
            return headcodes.discover(model, pairs, **OPTIONS[option])

    want = find("cpu")
    with pretended():
        found = find("both")
    alike(found.head_scores, want.head_scores)
    if want.pair_scores is not None:
        alike(found.pair_scores, want.pair_scores)
    nodes = found.findings.other_nodes, want.findings.other_nodes
    assert nodes[0].keys() == nodes[1].keys()
    if nodes[1]:
        alike(list(nodes[0].values()), list(nodes[1].values()))
    assert found.circuit().nodes == want.circuit().nodes
