"""Keeping and ablating heads, against whole forward passes with hooks of the test's own; planted circuits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from headcodes.errors import HeadcodesError
from headcodes.evaluation import areas
from headcodes.evaluation import faithfulness as faith
from headcodes.graph import Edges
from headcodes.interventions.engine import Compute
from headcodes.interventions.reads import graph_of
from headcodes.models.model import Model
from headcodes.prompts.tokens import TokenPairs
from made_pairs import one_change


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
    tokens = one_change()
    kept = np.random.default_rng(0).random((3, 3, 4)) < 0.5
    found = faith.behaviour(model, tokens, kept, ablation=ablation)
    small = faith.behaviour(model, tokens, kept, ablation=ablation, compute=Compute(memory_bytes=1))
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
    tokens = one_change()

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
    tokens = one_change()
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
    tokens = one_change()
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
    tokens = one_change()
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
    tokens = one_change()
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
