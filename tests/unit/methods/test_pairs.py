"""Pairs of heads: scored edge by edge between the best heads, by their heads' scores elsewhere, on one scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headcodes import discover, methods
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.evaluation import confirm
from headcodes.interventions.paths import path_effects
from headcodes.methods import pairs as pairs_module
from headcodes.methods.inputs import Inputs
from headcodes.metrics import pair_auc
from headcodes.models import planted
from headcodes.prompts.tokens import tokenize
from headcodes.settings import Settings
from made_pairs import token_pairs

pytestmark = pytest.mark.filterwarnings("ignore:the model answers only")


def planted_inputs(name: str, **options: Any) -> tuple[planted.Planted, Inputs]:
    made = planted.load(name)
    tokens = tokenize(made.task.build(made.model.tokenizer, n=12, seed=4), made.model.tokenizer)
    return made, Inputs(made.model, tokens, **options)


@pytest.mark.parametrize("name", ["planted-ioi", "planted-induction"])
@pytest.mark.parametrize("method", ["attribution", "contrast"])
def test_planted_pairs_come_first(name: str, method: str) -> None:
    made, inputs = planted_inputs(name)
    found = methods.get(method).find(inputs, "edge")
    assert found.pairs_proposed_by == ("gradients" if method == "attribution" else "composition")
    assert found.pair_scores is not None
    flat = found.head_scores.ravel()
    of_products = pair_auc(np.outer(flat, flat), made.truth.pair_labels, made.model.n_heads)
    judged = pair_auc(found.pair_scores, made.truth.pair_labels, made.model.n_heads)
    assert judged >= of_products
    if method == "attribution":
        assert judged == 1


def test_a_pair_is_scored_by_what_patching_its_paths_does() -> None:
    """The receiver of a planted edge is last before the logits, where first order is exact: the oracle patches."""
    made, inputs = planted_inputs("planted-induction")
    found = methods.get("attribution").find(inputs, "edge")
    assert found.pair_scores is not None
    assert found.carried is not None
    rows = np.flatnonzero(inputs.logit_differences[0] > 0)[:6].tolist()
    number = {name: place for place, name in enumerate(made.model.components)}
    edges = [(f"a{a}.h{b}", f"a{c}.h{d}") for (a, b), (c, d) in made.truth.pairs]
    # All three slots at once, as a pair; bounded and averaged as the heads' own products are.
    exact = path_effects(made.model, inputs.tokens.subset(rows), edges).effects
    bounded = np.tanh(exact)
    expected = np.abs(bounded.mean(0)) + np.abs(bounded).mean(0)
    got = np.array([found.pair_scores[number[a], number[b]] for a, b in edges])
    assert (expected > 0.1).all()
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert (found.pair_scores == found.pair_scores.T).all()
    assert not found.pair_scores.diagonal().any()


def test_without_gradients_weights_tell_how_heads_compose(tiny_model: Any) -> None:
    model = tiny_model("llama")
    found = methods.get("contrast").find(Inputs(model, token_pairs(n=11, seed=3), Settings(n_train=4)), "edge")
    assert found.pair_scores is not None
    d, n_heads, flat = model.d_head, model.n_heads, found.head_scores.ravel()
    expected, weighed = np.outer(flat, flat), np.zeros((flat.size, flat.size), dtype=bool)
    for sender in range(flat.size):
        for receiver in range((sender // n_heads + 1) * n_heads, flat.size):
            (a, b), (c, h) = divmod(sender, n_heads), divmod(receiver, n_heads)
            written = model.layers[a].self_attn.o_proj.weight.detach()[:, b * d : (b + 1) * d]
            strengths = []
            for slot in "qkv":
                module = getattr(model.layers[c].self_attn, f"{slot}_proj")
                place = h if slot == "q" else h // (n_heads // model.n_kv_heads)
                read = module.weight.detach()[place * d : (place + 1) * d]
                strengths.append(float((read @ written).norm() / (read.norm() * written.norm())))
            expected[sender, receiver] *= max(strengths)
            weighed[sender, receiver] = True
    np.testing.assert_allclose(found.pair_scores[weighed], expected[weighed], rtol=1e-4)
    np.testing.assert_array_equal(found.pair_scores, found.pair_scores.T)


def test_pairs_beyond_the_best_heads_are_on_the_same_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "_N_HEADS", 4)
    made, inputs = planted_inputs("planted-ioi")
    found = methods.get("attribution").find(inputs, "edge")
    assert found.pair_scores is not None
    flat, n_heads = found.head_scores.ravel(), made.model.n_heads
    best = np.argsort(-flat, kind="stable")[:4]
    layer = np.arange(flat.size) // n_heads
    inside = np.zeros((flat.size, flat.size), dtype=bool)
    inside[np.ix_(best, best)] = layer[best][:, None] != layer[best][None, :]
    products = np.outer(flat, flat)
    scale = (found.pair_scores * products)[inside].sum() / (products**2)[inside].sum()
    outside = ~inside & ~np.eye(flat.size, dtype=bool)
    np.testing.assert_allclose(found.pair_scores[outside], scale * products[outside], atol=1e-9)


def test_where_edges_cannot_be_had_a_warning_says_what_scores_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> Any:
        raise HeadcodesError("queries must be known", "none", "Choose another.")

    monkeypatch.setattr(pairs_module, "carried_edges", unknown)
    _, inputs = planted_inputs("planted-ioi")
    with pytest.warns(HeadcodesWarning, match=r"product of their scores alone: queries must be known; got none"):
        found = methods.get("attribution").find(inputs, "edge")
    assert (found.pairs_proposed_by, found.carried) == ("products", None)
    flat = found.head_scores.ravel()
    expected = np.outer(flat, flat)
    np.fill_diagonal(expected, 0)
    np.testing.assert_array_equal(found.pair_scores, expected)


def test_edges_of_the_proposal_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """At edge level the paths to patch are looked for among edges that are there already, and are the same ones."""
    made = planted.load("planted-ioi")
    prompts = made.task.build(made.model.tokenizer, n=20, seed=4)
    expected = discover(made.model, prompts, level="node").as_json()["edges"]
    monkeypatch.setattr(confirm, "carried_edges", lambda *_: pytest.fail("made again"))
    assert discover(made.model, prompts, level="edge").as_json()["edges"] == expected
