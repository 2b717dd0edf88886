"""From a proposal to a circuit: the rule that stops, the estimate, and planted circuits found to the last edge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import mean, variance
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t

import headcodes
from headcodes.circuit.circuit import Circuit
from headcodes.errors import HeadcodesWarning
from headcodes.evaluation.confirm import combined_scores, confirm_heads, confirmation, edge_rows, on_held_out
from headcodes.evaluation.faithfulness import behaviour
from headcodes.graph import head_name, parse_head, split_slot
from headcodes.interventions import verify as verify_module
from headcodes.interventions.paths import PathEffects
from headcodes.interventions.verify import Verification, confirmed, in_order, shrunk
from headcodes.methods.findings import Findings
from headcodes.methods.inputs import Inputs
from headcodes.models import planted
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.prompts.tokens import tokenize


@pytest.mark.parametrize("name", ["planted-ioi", "planted-induction"])
@pytest.mark.parametrize("gradient", [True, False])
def test_a_planted_circuit_is_found_exactly(name: str, gradient: bool) -> None:
    plant = planted.load(name)
    pairs = plant.task.build(plant.model.tokenizer, n=40, seed=3)
    result = headcodes.discover(plant.model, pairs, gradient=gradient)
    circuit = result.circuit()
    assert sorted(circuit.heads) == plant.truth.heads
    edges = {(parse_head(a), parse_head(split_slot(b)[0])) for a, b in circuit.edges}
    assert edges == set(plant.truth.pairs)
    assert result.unverified is None
    assert result.held_out is not None
    assert result.held_out["n_pairs"] == 8
    assert result.held_out["faithfulness"] == pytest.approx(1, abs=1e-4)
    assert result.held_out["completeness"] == pytest.approx(0, abs=1e-4)
    assert result.method_used == ("attribution" if gradient else "contrast")
    document = result.as_json()
    assert document["circuit"]["nodes"] == list(circuit.nodes)
    assert {row["head"] for row in document["verification"] if row["confirmed"]} == set(circuit.nodes)
    assert set(document["codes_used"]) == set(circuit.nodes)
    again = Circuit.from_dict(circuit.as_dict())
    assert again.effects == circuit.effects
    assert again == circuit


def patched(truth: Sequence[float], seen: list[int]) -> Any:
    def effects_of(parts: Sequence[int]) -> np.ndarray:
        seen.extend(parts)
        return np.array([[truth[part] for part in parts]] * 2)

    return effects_of


def test_patching_stops_after_ten_quiet_heads_in_a_row() -> None:
    truth = [1.0] * 5 + [0.0] * 9 + [-1.0] + [0.01] * 60
    seen: list[int] = []
    effects, stopped = in_order(range(75), patched(truth, seen), 0.05, lambda _parts: True)
    assert stopped == "quiet"
    # The tenth in a row is number 25; what was begun with it is reported too.
    assert 25 <= len(seen) < 75
    assert seen == list(range(len(seen)))
    np.testing.assert_array_equal(effects[0], truth[: len(seen)])
    # The tenth in a row is the last of the second dozen: no third is begun.
    effects, stopped = in_order(range(75), patched([1.0] * 14 + [0.0] * 61, []), 0.05, lambda _parts: True)
    assert (effects.shape, stopped) == ((2, 24), "quiet")
    effects, stopped = in_order(range(75), patched(truth, []), 0.05, lambda parts: len(parts) <= 13)
    assert (effects.shape, stopped) == ((2, 13), "budget")
    effects, stopped = in_order(range(75), patched(truth, []), 0.05, lambda _parts: False)
    assert (effects.shape, stopped) == ((2, 10), "budget")
    effects, stopped = in_order(range(14), patched(truth, []), 0.05, lambda _parts: True)
    assert (effects.shape, stopped) == ((2, 14), "all")
    effects, stopped = in_order(range(75), patched(truth, []), 0.05, lambda _parts: False, at_least=50)
    assert effects.shape == (2, 50)


def test_patching_takes_at_most_ten_times_the_work_of_the_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    plant = planted.load("planted-ioi-480")
    model = plant.model
    tokens = tokenize(plant.task.build(model.tokenizer, n=20, seed=3), model.tokenizer)
    findings = Findings.of(model)
    findings.set_signed(torch.arange(model.n_components, 0, -1))  # the first layer's heads first
    findings.by_gradients = True
    monkeypatch.setattr(
        verify_module,
        "patch_effects",
        lambda _model, some, parts, *_, **__: (np.full((len(some), len(parts)), 9.0), None),
    )
    found = confirm_heads(Inputs(model, tokens), findings, None, seed=0)
    assert (found.stopped, len(found.effects)) == ("budget", 16)
    # In tokens times layers: a pair is proposed on in two forward passes and a backward pass, which costs three.
    allowed = 10 * (2 + 3) * model.n_layers * sum(map(len, tokens.clean))
    patched = 0
    for clean, corrupt in list(zip(tokens.clean, tokens.corrupt, strict=True))[:16]:
        patched += len(clean) - next(i for i, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b)
    work = np.cumsum([patched * (model.n_layers - layer) for layer, _ in findings.parts])
    assert work[len(found.heads) - 1] <= allowed < work[len(found.heads)]


def test_confirmed_heads_surely_have_an_effect_and_maybe_some_size() -> None:
    found = verify_module.Verification(
        heads=[(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)],
        effects=(effects := np.tile([[1.0, -1.0, 0.3, 0.3, 3.0, 0.3], [1.0, -1.0, 0.1, 0.3, -2.0, 0.5]], (3, 1))),
        mean=effects.mean(axis=0),
        low=np.array([0.5, -2.0, -0.1, 0.3, -2.0, 0.3]),
        high=np.array([2.0, -0.5, 0.9, 0.4, 3.0, 0.6]),
        clean_ld=np.array([9.0, 11.0] * 3),
        corrupt_ld=np.zeros(6),
        n_answered=6,
        n_given=6,
    )
    # 5% of 10 is half a logit. (0, 2) may have none, (0, 3) surely has less; (1, 0) changes sign from prompt to prompt.
    assert found.confirmed() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found.confirmed(0.01) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    # Of two pairs, magnitudes of 3 and 2 say little of the mean magnitude.
    assert not verify_module.confirmed(effects[:2, 4:5], found.low[4:5], found.high[4:5], 0.5)[0]


def test_estimates_lie_nearer_the_truth_than_exact_means_of_few_prompts() -> None:
    draw = np.random.default_rng(5)
    better, inside = [], []
    for _ in range(40):
        truth = draw.normal(size=30)
        effects = truth + draw.normal(scale=1.5, size=(6, 30))
        proposed = 3 * (truth + draw.normal(scale=0.4, size=30))
        estimate, error = shrunk(effects, proposed, signed=True)
        better.append(((effects.mean(0) - truth) ** 2).mean() - ((estimate - truth) ** 2).mean())
        inside.append(np.abs(estimate - truth) <= error)
    assert np.mean(better) > 0.1
    # 95% is asked for; of six prompts even the spread is hardly known.
    assert 0.9 <= np.mean(inside) <= 0.98
    # A proposal that says nothing, and prompts that all agree, leave the exact means as they are.
    same = np.tile(truth, (6, 1))
    np.testing.assert_allclose(shrunk(same, draw.normal(size=30), signed=True)[0], truth)


@pytest.mark.parametrize("by_gradients", [True, False])
def test_scores_of_a_circuit_are_exact_effects_and_scaled_proposals_together(by_gradients: bool) -> None:
    proposed = np.array([[4.0, 2.0, 0.5], [0.4, 0.2, 0.1]])
    signed = np.array([[3.0, -1.0, 0.5], [-0.4, 0.2, -0.1]])
    findings = Findings(head_scores=proposed, signed=signed, by_gradients=by_gradients)
    heads: list[Any] = [(0, 0), (0, 1), (0, 2), (1, 0)]
    effects = np.array([[2.0, -0.8, 0.0, -0.02], [2.2, -0.6, 0.1, -0.06], [1.8, -0.7, -0.04, -0.04]])
    means = np.array([2.0, -0.7, 0.02, -0.04])
    half = np.array([0.2, 0.1, 0.1, 0.03])
    found = Verification(heads, effects, means, means - half, means + half, np.full(3, 4.0), np.zeros(3), 3, 3)
    assert found.confirmed() == [(0, 0), (0, 1)]
    # The other two patched heads: logits a unit of the proposal, through the origin.
    slope = (0.02 * 0.5 + 0.04 * 0.4) / (0.5**2 + 0.4**2)
    unreached = [0.2 * slope, -0.1 * slope]
    exact = [2.0, -0.7, 0.02, -0.04]
    both = [(2 + 4 * slope) / 2, -(0.7 + 2 * slope) / 2, (0.02 + 0.5 * slope) / 2, -(0.04 + 0.4 * slope) / 2]
    np.testing.assert_allclose(combined_scores(findings, found), (both if by_gradients else exact) + unreached)


def test_a_proposal_is_scaled_to_all_that_was_patched_where_the_rest_has_no_effect() -> None:
    findings = Findings(head_scores=np.array([[4.0, 2.0], [1e-9, 0.0]]), by_gradients=True)
    means = np.array([2.0, 1.0, 0.0])
    heads: list[Any] = [(0, 0), (0, 1), (1, 0)]
    found = Verification(heads, np.tile(means, (3, 1)), means, means, means, np.full(3, 4.0), np.zeros(3), 3, 3)
    assert found.confirmed() == [(0, 0), (0, 1)]
    np.testing.assert_allclose(combined_scores(findings, found), [2, 1, 0, 0], atol=1e-9)


def test_a_path_is_confirmed_from_a_hundredth_of_the_logit_difference_on() -> None:
    mean = np.array([0.021, -0.021, 0.009, 0.009])
    low, high = mean - np.array([0.01, 0.01, 0.001, 0.1]), mean + np.array([0.01, 0.01, 0.01, 0.1])
    # The third does not reach a hundredth, which is 0.02; the fourth may be nothing.
    edges = [("a0.h0", f"a1.h{i}<q>") for i in range(4)]
    paths = PathEffects(edges, np.tile(mean, (3, 1)), mean, low, high, np.full(3, 2.0))
    assert [row["confirmed"] for row in edge_rows(paths)] == [True, True, False, False]


def test_a_part_that_hinders_is_as_sure_as_one_that_helps() -> None:
    effects = np.tile([0.018, -0.018, 0.018], (4, 1))
    low, high = np.array([0.005, -0.03, -0.001]), np.array([0.03, -0.005, 0.03])
    assert confirmed(effects, low, high, 0.02) == [True, True, False]


def test_of_one_pair_there_is_an_estimate_without_an_interval() -> None:
    plant = planted.load("planted-ioi")
    result = headcodes.discover(plant.model, plant.task.build(plant.model.tokenizer, n=1, seed=3), n_train=2)
    rows = json.loads(json.dumps(result.as_json(), allow_nan=False))["verification"]
    assert rows
    assert all("estimate" in row and "estimate_low" not in row for row in rows)


def test_paths_of_a_method_without_gradients_are_proposed_by_weights() -> None:
    plant = planted.load("planted-ioi")
    pairs = plant.task.build(plant.model.tokenizer, n=12, seed=0)
    for method, by in (("patching", "composition"), ("attribution", "gradients")):
        document = headcodes.discover(plant.model, pairs, method=method, verify=8).as_json()
        assert document["confirmation"]["paths_proposed_by"] == by
        assert document["circuit"]["edges"]


def test_an_estimate_weighs_the_variance_of_the_mean_against_the_proposals_error() -> None:
    draw = np.random.default_rng(6)
    effects, proposed = draw.normal([3.0, -2.0, 1.0, 0.0], size=(5, 4)), np.array([1.5, -1.2, 0.2, 0.4])
    exact = [mean(column) for column in effects.T.tolist()]
    slope = sum(e * p for e, p in zip(exact, proposed, strict=True)) / sum(p * p for p in proposed)
    variances = [variance(column) / 5 for column in effects.T.tolist()]
    off = mean((e - slope * p) ** 2 - v for e, p, v in zip(exact, proposed, variances, strict=True))
    assert off > 0
    expected = [(off * e + v * slope * p) / (off + v) for e, p, v in zip(exact, proposed, variances, strict=True)]
    estimate, error = shrunk(effects, proposed, signed=True)
    np.testing.assert_allclose(estimate, expected)
    # Four heads: k - 1 of k, and 2 / (k - 3); Student's t of five pairs.
    halves = []
    for e, p, v in zip(exact, proposed, variances, strict=True):
        toward = v / (off + v)
        halves.append(t.ppf(0.975, 4) * (v * (1 - toward * 3 / 4) + 2 * toward**2 * (e - slope * p) ** 2) ** 0.5)
    np.testing.assert_allclose(error, halves)


def test_what_cannot_be_patched_stays_a_proposal_and_says_so(tiny_model: Any) -> None:
    model = tiny_model()
    text = "When Andrew and Jane had met, Andrew sent"
    pair = PromptPair(text, "When Andrew had met, Andrew sent", (" Jane",), (" Andrew",))
    pairs = PromptPairs((pair, PromptPair("Andrew sent a", "Jane sent a", (" Jane",), (" Andrew",))), "mine", "mine")
    with pytest.warns(HeadcodesWarning) as warned:
        result = headcodes.discover(model, pairs)
    said = " ".join(str(each.message) for each in warned)
    assert "stands for contrast" in said
    assert "no head was patched, so the circuit is a proposal" in said
    assert result.verification is None
    assert result.unverified is not None
    assert result.as_json()["unverified"] == result.unverified
    assert result.circuit(3).nodes


def test_held_out_pairs_are_not_scored_and_the_circuit_is_judged_on_them() -> None:
    plant = planted.load("planted-ioi")
    pairs = plant.task.build(plant.model.tokenizer, n=30, seed=4)
    result = headcodes.discover(plant.model, pairs)
    fewer = headcodes.discover(plant.model, pairs.head(24), verify=None)
    np.testing.assert_allclose(result.head_scores, fewer.head_scores, rtol=1e-4, atol=1e-7)
    assert result.verification is not None
    about = confirmation(result.findings, result.verification)
    assert about["n_unreached"] == 48 - len(result.verification.heads)
    assert about["unreached_share"] == pytest.approx(0, abs=1e-6)


def test_heads_alone_carry_less_where_mlps_matter(tiny_model: Any) -> None:
    """With every head kept and MLPs corrupted, against hooks of the test's own."""
    import torch

    model = tiny_model("llama")
    tokens = tokenize(headcodes.tasks.get("ioi").build(model.tokenizer, n=10, seed=0), model.tokenizer)
    kept = np.ones((1, model.n_layers, model.n_heads + 1), dtype=bool)
    kept[:, :, -1] = False
    found = behaviour(model, tokens, kept).logit_diff[:, 2]
    mlps = [model.mlp(layer) for layer in range(model.n_layers)]

    def logits(ids: list[int], hook: Any) -> torch.Tensor:
        handles = [module.register_forward_hook(hook) for module in mlps]
        with torch.no_grad():
            answer: torch.Tensor = model.module(torch.tensor([ids])).logits[0, -1].double()
        for handle in handles:
            handle.remove()
        return answer

    for index in range(3):
        written: dict[Any, torch.Tensor] = {}
        logits(tokens.corrupt[index], lambda module, _args, out, kept=written: kept.update({module: out}))
        answer = logits(tokens.clean[index], lambda module, _args, _out, kept=written: kept[module])
        right, wrong = answer[tokens.answers[index]], answer[tokens.wrong_answers[index]]
        assert found[index] == pytest.approx(float(right.logsumexp(0) - wrong.logsumexp(0)), abs=1e-4)


def test_no_held_out_pairs_no_judgement() -> None:
    plant = planted.load("planted-ioi")
    tokens = tokenize(plant.task.build(plant.model.tokenizer, n=4, seed=0), plant.model.tokenizer)
    assert on_held_out(Inputs(plant.model, tokens), [(0, 3)]) is None
    assert head_name(0, 3) == "a0.h3"
