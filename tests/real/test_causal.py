"""Exact patching on a real model: against a plain loop, and against the effects measured independently before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headcodes
from headcodes import tasks
from headcodes.errors import HeadcodesWarning
from headcodes.interventions import walk
from headcodes.interventions.engine import Compute, EngineUsed
from headcodes.interventions.patch import causal_truth
from headcodes.interventions.verify import verify
from headcodes.prompts.tokens import TokenPairs, tokenize

pytestmark = pytest.mark.real

# The largest effects on the logit difference, measured on other IOI pairs by another program.
KNOWN = {(23, 3): 2.4, (20, 0): 2.1, (29, 1): 1.5, (17, 4): 1.4, (29, 0): -1.1, (24, 4): -1.0}


@pytest.fixture(scope="module")
def ioi(smollm2: Any) -> TokenPairs:
    return tokenize(tasks.get("ioi").build(smollm2.tokenizer, n=32, seed=0), smollm2.tokenizer)


def plain_ld(model: Any, tokens: TokenPairs, index: int, ids: list[int], edit: Any = None, layer: int = 0) -> float:
    handle = model.projections[layer].register_forward_pre_hook(edit) if edit else None
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    if handle:
        handle.remove()
    right, wrong = tokens.answers[index], tokens.wrong_answers[index]
    return float(logits[right].logsumexp(0) - logits[wrong].logsumexp(0))


def test_effects_are_those_of_a_plain_loop(smollm2: Any, ioi: TokenPairs) -> None:
    heads = [(3, 2), (20, 0), (23, 3), (29, 1)]
    tokens = ioi.subset([0, 5])
    found = verify(smollm2, tokens, heads, compute=Compute("walk"))
    assert found.n_answered == 2
    for index in range(2):
        clean = plain_ld(smollm2, tokens, index, tokens.clean[index])
        for column, (layer, head) in enumerate(heads):
            kept: list[torch.Tensor] = []
            cut = slice(head * smollm2.d_head, (head + 1) * smollm2.d_head)
            plain_ld(smollm2, tokens, index, tokens.corrupt[index], lambda _m, a, k=kept: k.append(a[0]), layer)

            def edit(_m: Any, args: Any, cut: slice = cut, kept: list[torch.Tensor] = kept) -> Any:
                x = args[0].clone()
                x[..., cut] = kept[0][..., cut]
                return (x,)

            expected = clean - plain_ld(smollm2, tokens, index, tokens.clean[index], edit, layer)
            assert found.effects[index, column] == pytest.approx(expected, abs=2e-4)


def test_known_heads_have_their_known_effects(smollm2: Any, ioi: TokenPairs) -> None:
    others = [(2, 5), (5, 1), (9, 8), (12, 3), (16, 6), (26, 2)]
    found = verify(smollm2, ioi.subset(range(8)), [*KNOWN, *others])
    for effect, known in zip(found.mean, KNOWN.values(), strict=False):
        assert np.sign(effect) == np.sign(known)
        assert abs(effect) > 0.4 * abs(known)
    assert np.abs(found.mean[len(KNOWN) :]).max() < 0.3


def test_low_precision_is_told_from_a_walk_that_goes_wrong(ioi: TokenPairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of some of these pairs lie near 0, where bfloat16 rounds a tenth of them away."""
    model = headcodes.load_model("smollm2-135m", dtype="bfloat16")
    tokens = ioi.subset(range(12))
    assert verify(model, tokens, [(3, 1)]).engine == EngineUsed("walk")
    honest = walk._Batch._prepare

    def one_place_off(self: Any) -> None:
        honest(self)
        for _, named in self.base.calls:
            named["position_embeddings"] = tuple(part.roll(1, 1) for part in named["position_embeddings"])

    monkeypatch.setattr(walk._Batch, "_prepare", one_place_off)
    with pytest.warns(HeadcodesWarning, match="own answers"):
        assert verify(model, tokens, [(3, 1)]).engine != EngineUsed("walk")


@pytest.mark.slow
def test_known_heads_are_the_largest_of_all(
    smollm2: Any, ioi: TokenPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADCODES_CACHE", str(tmp_path))
    truth = causal_truth(smollm2, ioi, pairs=32)
    assert truth.n_answered >= 31
    largest = {name for name, _ in truth.largest(10)}
    assert {f"a{layer}.h{head}" for layer, head in KNOWN} <= largest


def test_the_first_mlp_has_the_largest_confirmed_effect(smollm2: Any, ioi: TokenPairs) -> None:
    """Nearly twice that of the largest head; hooks of the test's own agree."""
    result = headcodes.discover(smollm2, ioi.pairs.head(20), components="heads+mlps", verify=4)
    rows = {row["head"]: row for row in result.as_json()["verification"]}
    assert rows["m0"]["confirmed"]
    assert result.circuit().nodes[0] == "m0"
    assert rows["m0"]["effect"] > 1.5 * max(abs(row["effect"]) for name, row in rows.items() if name.startswith("a"))
    module = smollm2.mlp(0)
    tokens, lost = ioi.subset([0, 1]), []
    for index in range(2):
        kept: list[torch.Tensor] = []
        hook = module.register_forward_hook(lambda _m, _a, y, kept=kept: kept.append(y.clone()))
        plain_ld(smollm2, tokens, index, tokens.corrupt[index])
        hook.remove()
        clean = plain_ld(smollm2, tokens, index, tokens.clean[index])
        hook = module.register_forward_hook(lambda _m, _a, _y, kept=kept: kept[0])
        lost.append(clean - plain_ld(smollm2, tokens, index, tokens.clean[index]))
        hook.remove()
    found = verify(smollm2, tokens, [(0, None)])
    np.testing.assert_allclose(found.effects[:, 0], lost, atol=1e-3)
