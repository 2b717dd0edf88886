"""Keeping and ablating heads, against whole forward passes with hooks of the test's own; planted circuits."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import made_pairs
from headcodes.errors import HeadcodesError
from headcodes.evaluation import areas
from headcodes.evaluation import faithfulness as faith
from headcodes.graph import Edges
from headcodes.interventions.reads import edge_bytes_per_token, graph_of
from headcodes.models.model import Model
from headcodes.prompts.tokens import TokenPairs
from peers.spelled_out import SpelledOut


def area(x: Any, y: Any) -> float:
    return float(sum((b - a) * (u + v) / 2 for a, b, u, v in zip(x, x[1:], y, y[1:], strict=False)))


# Pairs of two lengths that change at one token, in one of them at the first.
token_pairs = partial(
    made_pairs.token_pairs,
    lengths=(9, 9, 6, 9, 6),
    places=((4,), (4,), (0,), (8,), (2,)),
    n_right=(1, 2),
    n_wrong=(1, 2, 3),
)


def seen(model: Model, ids: list[int], modules: list[Any]) -> list[torch.Tensor]:
    """Inputs of modules in a plain run."""
    kept: list[torch.Tensor] = []
    handles = [module.register_forward_hook(lambda _m, args, _o: kept.append(args[0].clone())) for module in modules]
    with torch.no_grad():
        model.module(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return kept


def plain_logits(
    model: Model, ids: list[int], kept: np.ndarray, instead: list[torch.Tensor], mlps: Any = None
) -> torch.Tensor:
    """Logits after the last token, heads (and MLPs, where something is there instead) that are not kept replaced."""
    handles = []
    for layer in range(model.n_layers if mlps is not None else 0):
        if not kept[layer, -1]:
            other = mlps[layer]
            module = model.mlp(layer)
            assert module is not None
            handles.append(module.register_forward_hook(lambda _m, _a, y, other=other: other.expand_as(y)))
    for layer, projection in enumerate(model.projections):

        def edit(_m: Any, args: Any, layer: int = layer) -> Any:
            x = args[0].clone()
            for head in range(model.n_heads):
                if not kept[layer, head]:
                    cut = slice(head * model.d_head, (head + 1) * model.d_head)
                    x[..., cut] = instead[layer][..., cut]
            return (x,)

        handles.append(projection.register_forward_pre_hook(edit))
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    for handle in handles:
        handle.remove()
    return logits


def replacement(model: Model, tokens: TokenPairs, index: int, ablation: str) -> list[torch.Tensor]:
    if ablation == "zero":
        return [torch.zeros(1)[None, None].expand(1, 1, model.n_heads * model.d_head)] * model.n_layers
    if ablation == "resample":
        return seen(model, tokens.corrupt[index], model.projections)
    every = [seen(model, ids, model.projections) for ids in tokens.corrupt]
    return [torch.cat([one[layer][0] for one in every]).mean(0)[None, None] for layer in range(model.n_layers)]


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_behaviour_is_that_of_plain_runs(tiny_model: Any, family: str, ablation: Any) -> None:
    model = tiny_model(family)
    tokens = token_pairs()
    kept = np.random.default_rng(0).random((3, 3, 4)) < 0.5
    found = faith.behaviour(model, tokens, kept, ablation=ablation)
    small = faith.behaviour(model, tokens, kept, ablation=ablation, memory_bytes=1)
    everything = np.ones((3, 4), dtype=bool)
    for index in range(len(tokens)):
        instead = replacement(model, tokens, index, ablation)
        clean = plain_logits(model, tokens.clean[index], everything, instead)
        runs = [clean, plain_logits(model, tokens.corrupt[index], everything, instead)]
        runs += [plain_logits(model, tokens.clean[index], mask, instead) for mask in kept]
        right, wrong = tokens.answers[index], tokens.wrong_answers[index]
        p = clean.softmax(-1)
        for run, logits in enumerate(runs):
            q = logits.softmax(-1)
            logit_diff = logits[right].exp().sum().log() - logits[wrong].exp().sum().log()
            expected = {
                "logit_diff": float(logit_diff),
                "prob_diff": float(q[right].sum() - q[wrong].sum()),
                "kl": float((p * (p / q).log()).sum()),
                "correct": float(logit_diff > 0),
                "top1": float(int(q.argmax()) in right),
            }
            for name, value in expected.items():
                assert getattr(found, name)[index, run] == pytest.approx(value, abs=2e-5), (name, run)
                assert getattr(small, name)[index, run] == pytest.approx(value, abs=2e-5), (name, run)


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_mlps_outside_the_circuit_are_ablated_too(tiny_model: Any, ablation: Any) -> None:
    model = tiny_model("gpt2")
    tokens = token_pairs()

    def written(ids: list[int]) -> list[torch.Tensor]:
        outputs: list[torch.Tensor] = []
        modules: list[Any] = [model.mlp(layer) for layer in range(model.n_layers)]
        handles = [module.register_forward_hook(lambda _m, _a, y: outputs.append(y.clone())) for module in modules]
        with torch.no_grad():
            model.module(input_ids=torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        return outputs

    every = [written(ids) for ids in tokens.corrupt]
    mean = [torch.cat([one[layer][0] for one in every]).mean(0) for layer in range(model.n_layers)]
    kept = np.random.default_rng(1).random((3, 3, 5)) < 0.5
    found = faith.behaviour(model, tokens, kept, ablation=ablation).logit_diff[:, 2:]
    for index in range(len(tokens)):
        other = {"resample": every[index], "zero": [torch.zeros(1)] * 3, "mean": mean}[ablation]
        instead = replacement(model, tokens, index, ablation)
        for run, mask in enumerate(kept):
            logits = plain_logits(model, tokens.clean[index], mask, instead, other)
            right, wrong = (logits[ids].logsumexp(0) for ids in (tokens.answers[index], tokens.wrong_answers[index]))
            assert found[index, run] == pytest.approx(float(right - wrong), abs=2e-5)


def test_a_circuit_of_heads_and_mlps_is_judged_by_its_members(tiny_model: Any) -> None:
    model = tiny_model("gpt2")
    tokens = token_pairs()
    parts = [(0, None), (1, 2), (2, None)]
    found = faith.faithfulness(model, tokens, parts, components="heads+mlps")
    circuit = np.zeros((3, 5), dtype=bool)
    circuit[0, 4] = circuit[1, 2] = circuit[2, 4] = True
    smaller = circuit.copy()
    smaller[0, 4] = False
    means = faith.behaviour(model, tokens, [circuit * 0, circuit, ~circuit, smaller]).logit_diff.mean(0)
    f = (means[2:] - means[2]) / (means[0] - means[2])
    assert (found.faithfulness, found.completeness) == (pytest.approx(f[1]), pytest.approx(f[2]))
    assert found.minimality[0] == pytest.approx(f[1] - f[3], abs=1e-6)
    # Nothing kept is the corrupted run but for the embedding; chosen among heads alone, all MLPs stay.
    assert found.empty["logit_diff"] == pytest.approx(means[2])
    heads = faith.faithfulness(model, tokens, parts, minimality=False)
    assert heads.faithfulness != pytest.approx(found.faithfulness, abs=1e-3)


def test_scale_runs_from_no_head_to_all(tiny_model: Any) -> None:
    model = tiny_model("llama")
    tokens = token_pairs()
    every = [(layer, head) for layer in range(3) for head in range(4)]
    whole = faith.faithfulness(model, tokens, every, minimality=False)
    assert whole.faithfulness == pytest.approx(1, abs=1e-4)
    assert whole.completeness == pytest.approx(0, abs=1e-4)
    assert whole.full["kl"] == 0
    none = faith.faithfulness(model, tokens, [], minimality=False)
    assert (none.faithfulness, none.completeness) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))
    # With all heads resampled only what the tokens themselves say is left of the clean prompt.
    assert whole.empty["logit_diff"] != pytest.approx(whole.full["logit_diff"], abs=1e-4)
    some = faith.faithfulness(model, tokens, [(0, 1), (2, 2)])
    kept = np.zeros((4, 3, 4), dtype=bool)
    kept[1, 0, 1] = kept[1, 2, 2] = kept[2, 2, 2] = kept[3, 0, 1] = True
    means = faith.behaviour(model, tokens, kept).logit_diff.mean(axis=0)
    f = (means[2:] - means[2]) / (means[0] - means[2])
    assert some.faithfulness == pytest.approx(f[1], abs=1e-4)
    assert some.minimality == [pytest.approx(f[1] - f[2], abs=1e-4), pytest.approx(f[1] - f[3], abs=1e-4)]


def test_curve_takes_the_best_heads_first(tiny_model: Any) -> None:
    model = tiny_model("llama")
    tokens = token_pairs()
    scores = np.arange(12.0).reshape(3, 4)  # the last heads are best
    found = faith.curve(model, tokens, scores, sizes=[12, 0, 2], n_random=3)
    assert found.sizes == [0, 2, 12]
    two = faith.faithfulness(model, tokens, [(2, 3), (2, 2)], minimality=False)
    assert found.faithfulness == [
        pytest.approx(0, abs=1e-4),
        pytest.approx(two.faithfulness, abs=1e-4),
        pytest.approx(1, abs=1e-4),
    ]
    assert found.completeness[1] == pytest.approx(two.completeness, abs=1e-4)
    assert found.random_low[1] <= found.random_mean[1] <= found.random_high[1]
    assert found.random_low[1] < found.random_high[1]
    assert (found.random_low[0], found.random_high[2]) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))
    again = faith.curve(model, tokens, scores, sizes=[0, 2, 12], n_random=3)
    assert again == found
    assert faith.default_sizes(270) == [0, 1, 2, 5, 10, 20, 50, 100, 200, 270]
    assert faith.default_sizes(10) == [0, 1, 2, 5, 10]


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
    # At MIB's own shares the first circuits of five edges are empty: f is 0 up to .1, 1 edge at .2, 2 at .5.
    mib = areas.cpr_cmd(f, scores)
    assert mib["f_signed"] == [0, 0, 0, 0, 0, 0, 0, 0.5, 0.75, 1.0]
    assert mib["cpr"] == pytest.approx(0.1 * 0.25 + 0.3 * 0.625 + 0.5 * 0.875)
    assert mib["cmd"] == pytest.approx(0.099 * 1 + 0.1 * 1.25 + 0.3 * 1.25 + 0.5 * 0.5)


def test_head_areas_are_those_of_the_runs(tiny_model: Any) -> None:
    model = tiny_model("llama")
    tokens = token_pairs()
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
    tokens = token_pairs()
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


@pytest.mark.parametrize("name", ["planted-ioi", "planted-induction"])
@pytest.mark.parametrize("ablation", ["resample"])
def test_a_planted_circuit_is_enough_and_all(name: str, ablation: Any) -> None:
    from headcodes.interventions.patch import causal_truth
    from headcodes.models import planted
    from headcodes.prompts.tokens import tokenize

    made = planted.load(name)
    tokens = tokenize(made.task.build(made.model.tokenizer, 12), made.model.tokenizer)
    found = faith.faithfulness(made.model, tokens, made.truth.heads, ablation=ablation)
    assert found.faithfulness == pytest.approx(1, abs=1e-3)
    assert found.completeness == pytest.approx(0, abs=1e-3)
    assert found.kept["kl"] == pytest.approx(0, abs=1e-3)
    truth = causal_truth(made.model, tokens, cache=False)
    effects = np.abs(truth.head_effects)
    assert effects[made.truth.labels].min() > 100 * effects[~made.truth.labels].max()


def test_what_cannot_be_asked(tiny_model: Any) -> None:
    model = tiny_model("llama")
    tokens = token_pairs()
    with pytest.raises(HeadcodesError, match="ablation must be"):
        faith.behaviour(model, tokens, np.ones((1, 3, 4)), ablation="noise")  # type: ignore[arg-type]
    with pytest.raises(HeadcodesError, match="kept must be"):
        faith.behaviour(model, tokens, np.ones((1, 4, 3)))
    with pytest.raises(HeadcodesError, match="heads must lie"):
        faith.faithfulness(model, tokens, [(3, 0)])
    graph = graph_of(model)
    unscored = Edges.of(graph, np.full(graph.shape, np.nan))
    with pytest.raises(HeadcodesError, match="finite score"):
        areas.edge_cpr_cmd(model, tokens, unscored)
    with pytest.raises(HeadcodesError, match="another graph"):
        areas.edge_cpr_cmd(model, tokens, Edges(graph.sources[1:], graph.destinations, unscored.scores[1:]))
    other = tiny_model("gemma2")
    scores = Edges.of(graph_of(other), np.zeros(graph_of(other).shape))
    with pytest.raises(HeadcodesError, match="norms what its parts write"):
        areas.edge_cpr_cmd(other, tokens, scores)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["planted-ioi-480", "planted-induction-480", "planted-ioi-4800"])
def test_larger_planted_circuits(name: str) -> None:
    from headcodes import metrics
    from headcodes.interventions.patch import causal_truth
    from headcodes.models import planted
    from headcodes.prompts.tokens import tokenize

    made = planted.load(name)
    tokens = tokenize(made.task.build(made.model.tokenizer, 8), made.model.tokenizer)
    found = faith.faithfulness(made.model, tokens, made.truth.heads)
    assert found.faithfulness == pytest.approx(1, abs=1e-3)
    assert found.completeness == pytest.approx(0, abs=1e-3)
    truth = causal_truth(made.model, tokens, pairs=2, cache=False)
    assert metrics.roc_auc(np.abs(truth.head_effects), made.truth.labels) == 1.0
