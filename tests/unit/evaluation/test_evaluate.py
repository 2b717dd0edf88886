from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcodes import metrics, tasks
from headcodes.circuit.circuit import Circuit
from headcodes.circuit.formats import with_edges
from headcodes.circuit.mib import from_mib, to_mib
from headcodes.errors import HeadcodesError
from headcodes.evaluation import truths
from headcodes.evaluation.diff import diff
from headcodes.evaluation.evaluate import _pair_scores, evaluate_circuit
from headcodes.interventions.patch import CausalTruth
from headcodes.prompts.tokens import tokenize


def made_truth() -> CausalTruth:
    effects = np.array([[3.0, 0.1, -2.0, 0.0], [1.0, 0.3, -2.5, 0.2]])
    return CausalTruth(
        effects=effects,
        clean_ld=np.array([4.0, 5.0]),
        corrupt_ld=np.array([0.0, 1.0]),
        n_answered=2,
        n_given=3,
        names=["a0.h0", "a0.h1", "a1.h0", "a1.h1"],
        n_layers=2,
        n_heads=2,
        model="m",
        task="ioi",
    )


def test_against_a_causal_truth() -> None:
    circuit = Circuit.from_scores([[4.0, 3.0], [2.0, 0.5]], top=2, model="m", task="ioi", method="x")
    found = evaluate_circuit(circuit, truth=made_truth(), top=2)
    assert found.ranking is not None
    assert found.membership is not None
    assert found.truth is not None
    # The truth is a0.h0 and a1.h0; the circuit holds a0.h0 and a0.h1.
    assert (found.membership["precision"], found.membership["recall"], found.membership["f1"]) == (0.5, 0.5, 0.5)
    assert found.ranking["roc_auc"] == pytest.approx(3 / 4)
    assert found.ranking["at_k"]["n_hits"] == 1
    assert found.ranking["spearman"] == pytest.approx(metrics.spearman([4, 3, 2, 0.5], [2, 0.2, 2.25, 0.1]))
    assert found.ranking["intervals"]["roc_auc"]["value"] == found.ranking["roc_auc"]
    assert found.ranking["pair_auc"] is None
    assert found.truth["largest_effects"][0] == ["a1.h0", -2.25]
    assert (found.truth["n_answered"], found.truth["n_given"]) == (2, 3)
    assert found.faithfulness is None
    assert found.notes == ["faithfulness needs the model and prompts"]
    json.dumps(found.as_dict(), allow_nan=False)
    assert "ROC AUC 0.750" in found.as_text()


def test_scores_that_are_all_alike_rank_nothing_and_are_still_json() -> None:
    truth = replace(made_truth(), effects=np.ones((2, 5)), names=[*made_truth().names, "m0"])
    flat = Circuit(n_layers=2, n_heads=2, nodes=("a0.h0",), node_scores=dict.fromkeys(truth.names, 1.0))
    found = evaluate_circuit(flat, truth=truth, top=2)
    assert found.ranking is not None
    assert found.components is not None
    assert (found.ranking["spearman"], found.components["spearman"]) == (None, None)
    json.dumps(found.as_dict(), allow_nan=False)
    assert "rank correlation" not in found.as_text()


def test_mlps_of_the_truth_are_shown_and_judged_where_the_circuit_knows_any() -> None:
    heads = made_truth()
    mlps = np.array([[5.0, -0.4], [6.0, 0.0]])
    truth = replace(heads, effects=np.hstack([heads.effects, mlps]), names=[*heads.names, "m0", "m1"])
    plain = Circuit.from_scores([[4.0, 3.0], [2.0, 0.5]], top=2, model="m", task="ioi", method="x")
    found = evaluate_circuit(plain, truth=truth, top=2)
    alone = evaluate_circuit(plain, truth=heads, top=2)
    # Heads are judged against heads, as without MLPs; the MLPs are shown.
    assert (found.ranking, found.membership, found.components) == (alone.ranking, alone.membership, None)
    assert found.truth is not None
    assert alone.truth is not None
    assert found.truth["mlp_effects"] == [5.5, -0.2]
    assert found.truth["largest_effects"][0] == ["m0", 5.5]
    assert found.truth["head_effects"] == alone.truth["head_effects"]
    assert "mlp_effects" not in alone.truth
    assert "largest MLPs    m0 +5.500  m1 -0.200" in found.as_text()
    # Of all parts m0 and a1.h0 have the largest effects: scores put m0 first, a1.h0 fourth.
    scored = replace(plain, node_scores={**plain.node_scores, "m0": 9.0, "m1": 2.5})
    together = evaluate_circuit(scored, truth=truth, top=2).components
    assert together is not None
    assert together["roc_auc"] == pytest.approx(5 / 8)
    assert together["average_precision"] == pytest.approx(1 / 2 * (1 + 2 / 5))
    assert together["spearman"] == pytest.approx(
        metrics.spearman([4, 3, 2, 0.5, 9, 2.5], [2, 0.2, 2.25, 0.1, 5.5, 0.2])
    )
    assert together["membership"] is None
    chosen = evaluate_circuit(replace(plain, nodes=("a0.h0", "a0.h1", "m0")), truth=truth, top=2).components
    assert chosen is not None
    assert chosen["roc_auc"] is None
    assert chosen["membership"] is not None
    assert (chosen["membership"]["precision"], chosen["membership"]["recall"]) == (pytest.approx(1 / 3), 0.5)
    # To keep all MLPs is no choice.
    assert evaluate_circuit(replace(plain, nodes=("a0.h0", "m0", "m1")), truth=truth, top=2).components is None
    text = evaluate_circuit(replace(scored, nodes=("a0.h0", "m0")), truth=truth, top=2).as_text()
    assert "heads and MLPs  ROC AUC 0.625" in text
    assert "chosen heads and MLPs  precision 0.500" in text


def test_pairs_scored_by_slots_are_sums_of_magnitudes() -> None:
    truth = truths.get("docstring", "conmy2023")
    (source, target), *_ = truths.circuit_of(truth).edges
    whole = Circuit(n_layers=4, n_heads=8, nodes=(), edge_scores={(source, target): 2.0, ("a0.h0", "a1.h0"): 1.5})
    slots = {(source, f"{target}<q>"): 1.0, (source, f"{target}<k>"): -1.0, ("a0.h0", "a1.h0<v>"): 1.5}
    by_slot = replace(whole, edge_scores=slots)
    assert np.array_equal(_pair_scores(by_slot), _pair_scores(whole))
    assert _pair_scores(whole).max() == 2
    # A pair's own score stands, whatever its slots have.
    both = replace(whole, edge_scores={(source, target): 7.0, **slots})
    assert _pair_scores(both).max() == 7


def test_areas_over_edges_are_those_of_the_graphs_own_scores(tiny_model: Any) -> None:
    from headcodes.evaluation.areas import edge_cpr_cmd
    from headcodes.interventions.patch import answered
    from headcodes.methods import get
    from headcodes.methods.inputs import Inputs

    model = tiny_model("gpt2")
    tokens = tokenize(tasks.get("ioi").build(model.tokenizer, 8), model.tokenizer)
    edges = get("eap").find(Inputs(model, tokens), "edge", 0).edges
    assert edges is not None
    heads = Circuit.from_scores(np.ones((3, 4)), top=2, d_model=32, model="m", task="ioi")
    graph = from_mib(to_mib(with_edges(heads, edges)))
    options: dict[str, Any] = {"truth": None, "with_curve": True, "n_random": 0, "n_pairs": 3}
    found = evaluate_circuit(graph, model, tokens, **options)
    expected = edge_cpr_cmd(model, answered(model, tokens, 3)[0], edges)
    assert found.edge_areas is not None
    assert found.edge_areas["cpr"] == pytest.approx(expected["cpr"], rel=1e-3)
    assert found.edge_areas["f_signed"][-1] == pytest.approx(1, abs=1e-3)
    assert f"over shares of {expected['n_edges']} edges: CPR" in found.as_text()
    json.dumps(found.as_dict(), allow_nan=False)
    assert evaluate_circuit(heads, model, tokens, **options).edge_areas is None
    gemma = tiny_model("gemma2")
    refused = evaluate_circuit(graph, gemma, tokens, **options)
    assert refused.edge_areas is None
    assert refused.areas is not None or "ranking is not judged" in refused.notes[0]
    assert "no CPR and CMD over edges" in refused.notes[-1]


def test_against_a_published_truth_with_pairs() -> None:
    truth = truths.get("docstring", "conmy2023")
    pair_scores = truth.pair_labels.astype(float)
    perfect = Circuit.from_scores(truth.labels, top=6, pair_scores=pair_scores, task="docstring", model=truth.model)
    found = evaluate_circuit(perfect, truth="conmy2023", with_faithfulness=False)
    assert found.ranking is not None
    assert (found.ranking["roc_auc"], found.ranking["pair_auc"]) == (1.0, 1.0)
    assert found.membership is not None
    assert found.membership["f1"] == 1.0
    assert found.notes == []
    other = evaluate_circuit(perfect, truth="heimersheim2023", with_faithfulness=False)
    assert other.membership is not None
    assert (other.membership["precision"], other.membership["recall"]) == (1.0, 6 / 8)
    with pytest.raises(HeadcodesError, match="one about 12 x"):
        evaluate_circuit(perfect, truth="wang2022", task="ioi")
    with pytest.raises(HeadcodesError, match="must be one of"):
        evaluate_circuit(perfect, truth="nobody")
    with pytest.raises(HeadcodesError, match="truth about MLPs too must be"):
        evaluate_circuit(perfect, truth="conmy2023", components="heads+mlps")


def test_a_circuit_without_scores_is_judged_by_its_heads() -> None:
    found = evaluate_circuit(
        truths.circuit_of(truths.get("ioi", "oneill2024")), truth="wang2022", with_faithfulness=False
    )
    assert found.ranking is None
    assert found.membership is not None
    assert (found.membership["n_hits"], found.membership["n_taken"]) == (25, 26)
    assert "not every head has a score" in found.notes[0]
    found.as_text()


def test_a_planted_circuit_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headcodes.models import planted

    monkeypatch.setenv("HEADCODES_CACHE", str(tmp_path))
    made = planted.load("planted-ioi")
    tokens = tokenize(made.task.build(made.model.tokenizer, 6), made.model.tokenizer)
    scores = made.truth.labels + 0.01 * np.random.default_rng(0).random(made.truth.labels.shape)
    circuit = Circuit.from_scores(scores, top=len(made.truth.heads), model=made.model.name, task="ioi")
    found = evaluate_circuit(circuit, made.model, tokens, top=len(made.truth.heads), with_curve=True, n_random=2)
    assert found.ranking is not None
    assert found.membership is not None
    assert found.faithfulness is not None
    assert found.areas is not None
    assert found.curve is not None
    assert (found.ranking["roc_auc"], found.membership["f1"]) == (1.0, 1.0)
    assert found.faithfulness["faithfulness"] == pytest.approx(1, abs=1e-3)
    assert found.faithfulness["completeness"] == pytest.approx(0, abs=1e-3)
    assert found.areas["cmd"] < 0.2
    assert found.curve["faithfulness"][-1] == pytest.approx(1, abs=1e-3)
    assert "faithfulness 1.000" in found.as_text()
    json.dumps(found.as_dict(), allow_nan=False)
    no_draws = evaluate_circuit(circuit, made.model, tokens, truth=made.truth, with_curve=True, n_random=0)
    assert no_draws.curve is not None
    assert no_draws.curve["random_mean"] == []
    json.dumps(no_draws.as_dict(), allow_nan=False)
    no_draws.as_text()
    by_truth = evaluate_circuit(circuit, made.model, tokens, truth=made.truth, with_faithfulness=False)
    assert by_truth.membership == found.membership


def test_what_does_not_fit(tiny_model: Any) -> None:
    circuit = Circuit.from_scores(np.ones((2, 2)), top=1)
    with pytest.raises(HeadcodesError, match="no model"):
        evaluate_circuit(circuit)
    with pytest.raises(HeadcodesError, match="3 layers x 4 heads"):
        evaluate_circuit(circuit, tiny_model("llama"))


def test_diff() -> None:
    a = Circuit(
        n_layers=2,
        n_heads=2,
        nodes=("a1.h0", "a0.h0", "m1"),
        edges=(("a0.h0", "a1.h0"),),
        node_scores={"a0.h0": 1.0, "a0.h1": 0.5, "a1.h0": -3.0},
    )
    b = Circuit(
        n_layers=2,
        n_heads=2,
        nodes=("a0.h0", "a0.h1"),
        edges=(("a0.h0", "a1.h0"), ("a0.h1", "a1.h0")),
        node_scores={"a0.h0": 10.0, "a0.h1": 5.0, "a1.h0": 30.0, "a1.h1": 0.0},
    )
    found = diff(a, b)
    assert (found.nodes_both, found.nodes_only_a, found.nodes_only_b) == (["a0.h0"], ["a1.h0", "m1"], ["a0.h1"])
    assert (found.edges_both, found.edges_only_a) == ([("a0.h0", "a1.h0")], [])
    assert found.edges_only_b == [("a0.h1", "a1.h0")]
    assert (found.node_jaccard, found.edge_jaccard) == (0.25, 0.5)
    assert found.score_correlation == pytest.approx(1)
    assert "only B  a0.h1" in found.as_text()
    json.dumps(found.as_dict(), allow_nan=False)
    assert found.effects_apart == []
    same = diff(a, a)
    assert (same.node_jaccard, same.edge_jaccard, same.nodes_only_a, same.edges_only_b) == (1, 1, [], [])
    empty = Circuit(n_layers=2, n_heads=2, nodes=())
    assert (diff(empty, empty).node_jaccard, diff(empty, empty).score_correlation) == (None, None)
    with pytest.raises(HeadcodesError, match="one shape"):
        diff(a, Circuit(n_layers=2, n_heads=3, nodes=()))


def test_diff_says_which_exact_effects_differ() -> None:
    def patched(**effects: tuple[float, float, float]) -> Circuit:
        rows = {
            name.replace("_", "."): {"effect": effect, "low": low, "high": high, "confirmed": True}
            for name, (effect, low, high) in effects.items()
        }
        return Circuit(n_layers=2, n_heads=2, nodes=("a0.h0",), effects=rows)

    a = patched(a0_h0=(1.0, 0.8, 1.2), a0_h1=(1.0, 0.8, 1.2), a1_h0=(2.0, 1.5, 2.5), a1_h1=(1.0, 0.9, 1.1))
    b = patched(a0_h0=(1.3, 1.1, 1.5), a0_h1=(0.5, 0.4, 0.6), a1_h0=(-2.0, -3.0, -1.0))
    found = diff(a, b)
    assert found.effects_apart == [("a1.h0", 2.0, -2.0), ("a0.h1", 1.0, 0.5)]
    assert "effects that differ a1.h0 +2.00/-2.00 a0.h1 +1.00/+0.50" in found.as_text()


def test_diff_of_pairs_and_of_a_graph_with_slots_is_of_the_pairs_that_both_join() -> None:
    shape = {"n_layers": 2, "n_heads": 2, "nodes": ()}
    ours = Circuit(**shape, edges=(("a0.h0", "a1.h0"), ("a0.h1", "a1.h1")))
    graph = Circuit(
        **shape,
        edges=(
            ("a0.h0", "a1.h0<q>"),
            ("a0.h0", "a1.h0<v>"),
            ("a0.h0", "a1.h1<k>"),
            ("input", "a0.h0<q>"),
            ("m0", "logits"),
        ),
    )
    found = diff(ours, graph)
    assert found.edges_as == "pairs of heads"
    assert found.edges_both == [("a0.h0", "a1.h0")]
    assert found.edges_only_a == [("a0.h1", "a1.h1")]
    assert found.edges_only_b == [("a0.h0", "a1.h1")]
    assert found.edge_jaccard == pytest.approx(1 / 3)
    assert "pairs of heads" in found.as_text()
    confirmed = Circuit(**shape, edges=(("a0.h0", "a1.h0<v>"), ("a0.h1", "a1.h0<q>")))  # slots, and heads alone
    for one, other in ((ours, confirmed), (confirmed, ours)):
        assert diff(one, other).edges_as == "pairs of heads"
        assert diff(one, other).edges_both == [("a0.h0", "a1.h0")]
    assert diff(confirmed, confirmed).edges_as == "named"
    assert diff(graph, graph).edges_as == "named"
    assert len(diff(graph, graph).edges_both) == 5


def test_chosen_edges_are_said_not_to_be_judged_alone() -> None:
    """A graph of another tool that chooses edges of the input and the logits runs as whole nodes; a note says so."""
    from headcodes.models import planted

    made = planted.load("planted-ioi")
    tokens = tokenize(made.task.build(made.model.tokenizer, n=8, seed=1), made.model.tokenizer)
    whole = truths.circuit_of(made.truth)
    graph = replace(whole, edges=(("input", "a0.h3<q>"), ("a4.h0", "logits")))
    notes = [evaluate_circuit(each, made.model, tokens, truth=None, n_pairs=4).notes for each in (whole, graph)]
    assert not any("chosen edges" in note for note in notes[0])
    (said,) = (note for note in notes[1] if "chosen edges" in note)
    assert said.startswith(f"faithfulness is of the {len(whole.heads)} chosen nodes as a whole")
    assert said.endswith("not the 2 chosen edges alone")
