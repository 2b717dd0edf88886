"""Metrics against plain forward passes, and in the methods that work with them against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from headcodes import HeadcodesError, discover, methods, tasks
from headcodes.interventions.metric import METRICS, measure
from headcodes.interventions.patch import answered, causal_truth
from headcodes.interventions.runs import batches, ready, run
from headcodes.methods.inputs import Inputs
from headcodes.methods.request import check_request
from headcodes.prompts.tokens import tokenize
from made_pairs import flipped


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def tokens(model: Any) -> Any:
    return flipped(model, tokenize(tasks.get("ioi").build(model.tokenizer, 5), model.tokenizer))


def plain(metric: str, logits: Any, clean: Any, right: list[int], wrong: list[int]) -> float:
    """The definitions, in probabilities and float64."""
    p, q = (x.double().softmax(0).numpy() for x in (logits, clean))
    if metric == "logit-diff":
        return float(np.log(p[right].sum()) - np.log(p[wrong].sum()))
    if metric == "prob-diff":
        return float(p[right].sum() - p[wrong].sum())
    return float(np.log(p[right].sum())) if metric == "nll" else float(-(q * np.log(q / p)).sum())


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_of_a_run(model: Any, tokens: Any, metric: Any) -> None:
    with ready(model), torch.no_grad():
        for batch in batches(tokens, 1, 1 << 30):
            whole = metric != "logit-diff"
            clean = run(model, batch.clean, batch, whole_vocabulary=whole).logits
            corrupt = run(model, batch.corrupt, batch, whole_vocabulary=whole).logits
            found = measure(metric, batch, corrupt, clean)
            for place, row in enumerate(batch.rows):
                full = [
                    model.module(torch.tensor([ids])).logits[0, -1] for ids in (tokens.corrupt[row], tokens.clean[row])
                ]
                expected = plain(metric, *full, tokens.answers[row], tokens.wrong_answers[row])
                assert float(found[place]) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_patching_measures_what_was_asked_for(model: Any, tokens: Any, metric: Any) -> None:
    truth = causal_truth(model, tokens, cache=False, metric=metric)
    layer, head = 1, 2
    width = slice(head * model.d_head, (head + 1) * model.d_head)
    effects = []
    right_pairs = [i for i in range(len(tokens)) if plain_ahead(model, tokens, i)]
    for index in right_pairs:
        kept: dict[str, Any] = {}
        module = model.projections[layer]
        ids = [torch.tensor([side[index]]) for side in (tokens.clean, tokens.corrupt)]
        with torch.no_grad():
            hook = module.register_forward_pre_hook(lambda _m, args, kept=kept: kept.update(z=args[0].clone()))
            model.module(ids[1])
            hook.remove()

            def patch(_m: Any, args: Any, kept: dict[str, Any] = kept) -> Any:
                z = args[0].clone()
                z[..., width] = kept["z"][..., width]
                return (z, *args[1:])

            clean = model.module(ids[0]).logits[0, -1]
            hook = module.register_forward_pre_hook(patch)
            patched = model.module(ids[0]).logits[0, -1]
            hook.remove()
        answers = tokens.answers[index], tokens.wrong_answers[index]
        effects.append(plain(metric, clean, clean, *answers) - plain(metric, patched, clean, *answers))
    np.testing.assert_allclose(truth.effects[:, layer * model.n_heads + head], effects, atol=2e-5)


def plain_ahead(model: Any, tokens: Any, index: int) -> bool:
    with torch.no_grad():
        logits = model.module(torch.tensor([tokens.clean[index]])).logits[0, -1]
    return bool(logits[tokens.answers[index]].logsumexp(0) > logits[tokens.wrong_answers[index]].logsumexp(0))


@pytest.mark.parametrize("metric", ["prob-diff", "nll"])
@pytest.mark.parametrize("method", ["eap", "hybrid", "attribution"])
def test_gradients_are_of_the_metric(model: Any, tokens: Any, method: str, metric: Any) -> None:
    """EAP's product is the derivative of the metric towards the corrupted value: worked out by differences here."""
    found = methods.get(method).find(Inputs(model, tokens, metric=metric)).signed
    assert found is not None
    layer, head, step = 1, 2, 1e-2
    width = slice(head * model.d_head, (head + 1) * model.d_head)
    slopes = []
    for index in range(len(tokens)):
        kept: list[Any] = []
        module = model.projections[layer]
        ids = [torch.tensor([side[index]]) for side in (tokens.clean, tokens.corrupt)]
        with torch.no_grad():
            hook = module.register_forward_pre_hook(lambda _m, args, kept=kept: kept.append(args[0].clone()))
            for side in ids:
                model.module(side)
            hook.remove()
            values = []
            for sign in (1, -1):

                def nudge(_m: Any, args: Any, kept: list[Any] = kept, sign: int = sign) -> Any:
                    z = args[0].clone()
                    z[..., width] += sign * step * (kept[0] - kept[1])[..., width]
                    return (z, *args[1:])

                hook = module.register_forward_pre_hook(nudge)
                logits = model.module(ids[0]).logits[0, -1]
                hook.remove()
                values.append(plain(metric, logits, logits, tokens.answers[index], tokens.wrong_answers[index]))
        slopes.append((values[0] - values[1]) / (2 * step))
    assert found[layer, head] == pytest.approx(float(np.mean(slopes)), rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("method", ["eap-ig-inputs", "eap-ig-activations", "patching", "acdc", "sp"])
def test_methods_that_leave_the_clean_run_take_kl(model: Any, tokens: Any, method: str) -> None:
    few = answered(model, tokens, 2)[0]
    scores = methods.get(method).find(Inputs(model, few, metric="kl")).head_scores
    assert np.isfinite(scores).all()
    assert scores.any()


@pytest.mark.parametrize("method", ["eap", "hisp", "hybrid", "attribution"])
def test_kl_is_flat_at_the_clean_run(model: Any, tokens: Any, method: str) -> None:
    with pytest.raises(HeadcodesError, match="its gradient is 0"):
        methods.get(method).find(Inputs(model, tokens, metric="kl"))


@pytest.mark.filterwarnings("ignore::headcodes.errors.HeadcodesWarning")
def test_a_result_names_its_metric(model: Any, tokens: Any) -> None:
    assert discover(model, tokens.pairs, method="eap").as_json()["metric"] == "logit-diff"
    assert discover(model, tokens.pairs, method="eap", metric="nll").as_json()["metric"] == "nll"
    assert "metric" not in discover(model, tokens.pairs, method="mean-diff").as_json()


def test_metrics_that_cannot_be_had_are_refused_before_any_work() -> None:
    with pytest.raises(HeadcodesError, match="one of logit-diff, prob-diff, kl, nll"):
        check_request("eap", metric="accuracy")
    with pytest.raises(HeadcodesError, match="eap-ig-inputs"):
        check_request("mean-diff", metric="nll")
