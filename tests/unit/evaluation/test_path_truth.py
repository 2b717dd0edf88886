"""Edges judged by exact path patching between the heads of largest effect."""

from __future__ import annotations

from headcodes.discovery import discover
from headcodes.evaluation import truths
from headcodes.evaluation.evaluate import evaluate_circuit
from headcodes.evaluation.paths import path_truth
from headcodes.graph import head_name, split_slot
from headcodes.models import planted
from headcodes.prompts.tokens import tokenize


def test_paths_between_the_largest_heads_judge_edges() -> None:
    """On a planted model the paths that matter are the planted ones; EAP's edges find them, reversed scores do not."""
    made = planted.load("planted-induction-18")
    tokens = tokenize(made.task.build(made.model.tokenizer, n=12, seed=1), made.model.tokenizer)
    n_heads = len(made.truth.heads)
    circuit = discover(made.model, tokens.pairs, method="eap", level="edge").circuit(n_heads)
    found = evaluate_circuit(circuit, made.model, tokens, truth="paths", top=n_heads, n_pairs=8)
    planted_pairs = {(head_name(*a), head_name(*b)) for a, b in made.truth.pairs}
    exact = path_truth(made.model, tokens, made.truth.heads)
    assert set(exact.confirmed()) == planted_pairs
    assert found.paths is not None
    assert found.paths["n_edges_in_truth"] == len(planted_pairs)
    assert {(row["from"], row["to"]) for row in found.paths["largest"][: len(planted_pairs)]} == planted_pairs
    assert "paths: " in found.as_text()
    assert "by_slot" not in found.paths
    without = evaluate_circuit(truths.circuit_of(made.truth), made.model, tokens, truth="paths", top=n_heads, n_pairs=8)
    assert without.paths is not None
    assert without.paths["pair_auc"] is None
    assert any("paths are not judged" in note for note in without.notes)


def test_paths_into_queries_keys_and_values_are_judged_apart() -> None:
    """Where a circuit's edges name what the receiver reads; here they are the confirmed ones, so none is missed."""
    made = planted.load("planted-induction-18")
    tokens = tokenize(made.task.build(made.model.tokenizer, n=12, seed=1), made.model.tokenizer)
    n_heads = len(made.truth.heads)
    circuit = discover(made.model, tokens.pairs).circuit(n_heads)
    found = evaluate_circuit(circuit, made.model, tokens, truth="paths", top=n_heads, n_pairs=8)
    assert found.paths is not None
    by_slot = found.paths["by_slot"]
    exact = path_truth(made.model, tokens, made.truth.heads, apart=True).confirmed()
    assert set(circuit.edges) == set(exact)
    for slot in "qkv":
        into = [receiver for _, receiver in exact if split_slot(receiver)[1] == slot]
        assert (by_slot[slot]["n_edges_in_truth"], by_slot[slot]["n_paths"]) == (len(into), found.paths["n_paths"])
    assert by_slot["qkv"]["n_edges_in_truth"] == len(exact)
    assert by_slot["qkv"]["pair_auc"] == 1
    assert "q, k, v apart" in found.as_text()
