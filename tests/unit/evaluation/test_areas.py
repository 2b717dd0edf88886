"""CPR and CMD: areas over circuits of rising size, by hand, of heads, and of edges spelled out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headcodes.evaluation import areas
from headcodes.evaluation import faithfulness as faith
from headcodes.graph import Edges
from headcodes.interventions.reads import edge_bytes_per_token, graph_of
from made_pairs import one_change
from peers.spelled_out import SpelledOut


def area(x: Any, y: Any) -> float:
    return float(sum((b - a) * (u + v) / 2 for a, b, u, v in zip(x, x[1:], y, y[1:], strict=False)))


def test_five_edges_by_hand() -> None:
    """f = 1/2 for edge 0, 1/4 for edge 1, 1 for edge 4 once it is there with edge 0; edge 3 takes 1/2 away."""
    scores = [3.0, 2.0, 0.5, -4.0, 1.0]

    def f(edges: list[int]) -> float:
        worth = {0: 0.5, 1: 0.25, 2: 0.0, 3: -0.5, 4: 0.75}
        return sum(worth[edge] for edge in edges)

    shares = (0.2, 0.4, 0.6, 1.0)
    found = areas.cpr_cmd(f, scores, shares=shares)
    # By signed score: 0, 1, 4, 2, 3. By absolute score: 3, 0, 1, 4, 2.
    assert found["f_signed"] == [0.5, 0.75, 1.5, 1.0]
    assert found["f_absolute"] == [-0.5, 0.0, 0.25, 1.0]
    assert found["cpr"] == pytest.approx(0.2 * 0.625 + 0.2 * 1.125 + 0.4 * 1.25)
    assert found["cmd"] == pytest.approx(0.2 * 1.25 + 0.2 * 0.875 + 0.4 * 0.375)
    # Whole edges alone: 2.75 of them are two.
    assert areas.cpr_cmd(f, scores, shares=(0.55, 1.0))["f_signed"] == [0.75, 1.0]
    # At MIB's own shares the first circuits of five edges are empty: f is 0 up to .1, 1 edge at .2, 2 at .5.
    mib = areas.cpr_cmd(f, scores)
    assert mib["f_signed"] == [0, 0, 0, 0, 0, 0, 0, 0.5, 0.75, 1.0]
    assert mib["cpr"] == pytest.approx(0.1 * 0.25 + 0.3 * 0.625 + 0.5 * 0.875)
    assert mib["cmd"] == pytest.approx(0.099 * 1 + 0.1 * 1.25 + 0.3 * 1.25 + 0.5 * 0.5)


def test_head_areas_are_those_of_the_runs(tiny_model: Any) -> None:
    model = tiny_model("llama")
    tokens = one_change()
    scores = np.random.default_rng(3).normal(size=(3, 4))
    found = areas.head_cpr_cmd(model, tokens, scores, shares=(0.1, 0.5, 1.0))

    def f(taken: list[int]) -> float:
        return faith.faithfulness(model, tokens, [divmod(i, 4) for i in taken], minimality=False).faithfulness

    expected = areas.cpr_cmd(f, scores, shares=(0.1, 0.5, 1.0))
    assert found["cpr"] == pytest.approx(expected["cpr"], abs=1e-4)
    assert found["cmd"] == pytest.approx(expected["cmd"], abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_edge_areas_are_those_of_models_spelled_out(tiny_model: Any, family: str) -> None:
    model = tiny_model(family)
    tokens = one_change()
    graph = graph_of(model)
    sources, destinations = graph.sources, graph.destinations
    scores = np.full(graph.shape, np.nan)
    real = graph.edges_from_logits()
    scores[tuple(zip(*real, strict=True))] = np.random.default_rng(4).normal(size=len(real))
    shares = (0.05, 0.6, 1.0)
    found = areas.edge_cpr_cmd(model, tokens, Edges(sources, destinations, scores), shares=shares)
    plain = SpelledOut(model, family)

    def mean_logit_diff(kept: set[tuple[int, int]]) -> float:
        gone = {(sources[i], destinations[j]) for i, j in real if (i, j) not in kept}
        total = 0.0
        for index in range(len(tokens)):
            _, corrupt = plain.run(tokens.corrupt[index], {}, set())
            logits, _ = plain.run(tokens.clean[index], corrupt, gone)
            right, wrong = logits[tokens.answers[index]], logits[tokens.wrong_answers[index]]
            total += float(right.logsumexp(0) - wrong.logsumexp(0))
        return total / len(tokens)

    full, empty = mean_logit_diff(set(real)), mean_logit_diff(set())
    for name, key in (("f_signed", lambda edge: -scores[edge]), ("f_absolute", lambda edge: -abs(scores[edge]))):
        order = sorted(real, key=key)
        for share, f in zip(shares, found[name], strict=True):
            expected = (mean_logit_diff(set(order[: int(share * len(real))])) - empty) / (full - empty)
            assert f == pytest.approx(expected, abs=2e-3), (name, share)
    assert found["f_signed"][-1] == pytest.approx(1, abs=1e-4)
    assert found["cpr"] == pytest.approx(area(shares, found["f_signed"]))
    assert found["cmd"] == pytest.approx(area(shares, [abs(1 - f) for f in found["f_absolute"]]))
    assert found["n_edges"] == len(real)
    # Batches of two, two and one pair weigh as all together.
    some = 2 * 9 * edge_bytes_per_token(model)
    parted = areas.edge_cpr_cmd(model, tokens, Edges(sources, destinations, scores), shares=shares, memory_bytes=some)
    assert parted["f_signed"] == pytest.approx(found["f_signed"], abs=2e-3)
    # No edge at all is the corrupted prompt.
    nothing = areas.edge_cpr_cmd(model, tokens, Edges(sources, destinations, scores), shares=(0.0001, 1.0))
    assert nothing["f_signed"] == [pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4)]


@pytest.mark.parametrize("name", ["planted-ioi", "planted-induction"])
def test_the_edges_of_a_planted_circuit_are_enough_and_all(name: str) -> None:
    from headcodes.graph import head_name
    from headcodes.models import planted
    from headcodes.prompts.tokens import tokenize

    made = planted.load(name)
    tokens = tokenize(made.task.build(made.model.tokenizer, 6), made.model.tokenizer)
    graph = graph_of(made.model)
    sources, destinations = graph.sources, graph.destinations
    heads = [head_name(*head) for head in made.truth.heads]
    planted_edges = {(head_name(*a), f"{head_name(*b)}<{slot}>") for a, b in made.truth.pairs for slot in "qkv"}
    planted_edges |= {("input", f"{head}<{slot}>") for head in heads for slot in "qkv"}
    planted_edges |= {(source, "logits") for source in ["input", *heads]}
    real = list(graph.edges())
    scores = np.full(graph.shape, np.nan)
    for i, j in real:
        scores[i, j] = float((sources[i], destinations[j]) in planted_edges)
    shares = ((len(planted_edges) + 0.5) / len(real), 1.0)
    found = areas.edge_cpr_cmd(made.model, tokens, Edges(sources, destinations, scores), shares=shares)
    assert found["f_signed"][0] == pytest.approx(1, abs=1e-3)
    assert len(planted_edges) < 0.2 * len(real)
    # All edges but these do nothing.
    shares = ((len(real) - len(planted_edges) + 0.5) / len(real), 1.0)
    others = areas.edge_cpr_cmd(made.model, tokens, Edges(sources, destinations, -scores), shares=shares)
    assert others["f_signed"] == [pytest.approx(0, abs=1e-3), pytest.approx(1, abs=1e-3)]
