"""MLPs as members of a circuit: scored, patched and confirmed among heads, drawn, exported, judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headcodes import HeadcodesError, discover, methods, tasks
from headcodes.circuit.formats import export, load_circuit
from headcodes.cli.table import table
from headcodes.evaluation.evaluate import evaluate_circuit
from headcodes.evaluation.faithfulness import membership
from headcodes.interventions.patch import answered, causal_truth
from headcodes.interventions.verify import verify
from headcodes.methods.inputs import Inputs
from headcodes.methods.request import check_request
from headcodes.prompts.tokens import tokenize
from headcodes.report.folders import read_folder
from headcodes.report.page import write_page

SCORING = [name for name in methods.METHODS if name not in methods.HEADS_ONLY]


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def tokens(model: Any) -> Any:
    return answered(model, tokenize(tasks.get("ioi").build(model.tokenizer, n=24), model.tokenizer), 10)[0]


def mlp_outputs(model: Any, ids: list[int], patched: tuple[int, Any] | None = None) -> tuple[list[Any], Any]:
    """Outputs of all MLPs and the last logits of a plain run, in which one MLP may put out something else."""
    outputs: list[Any] = []
    handles = []
    for layer in range(model.n_layers):

        def hook(_module: Any, _args: Any, y: Any, layer: int = layer) -> Any:
            y = patched[1] if patched is not None and patched[0] == layer else y
            outputs.append(y)
            return y

        handles.append(model.mlp(layer).register_forward_hook(hook))
    logits = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return outputs, logits


def logit_diff(tokens: Any, pair: int, logits: Any) -> Any:
    return logits[tokens.answers[pair]].logsumexp(0) - logits[tokens.wrong_answers[pair]].logsumexp(0)


def test_mlps_are_patched_exactly(model: Any, tokens: Any) -> None:
    found = verify(model, tokens, [(1, 2), (2, None), (0, None)])
    expected = np.zeros((len(tokens), 2))
    with torch.no_grad():
        for pair in range(len(tokens)):
            corrupted, _ = mlp_outputs(model, tokens.corrupt[pair])
            clean = logit_diff(tokens, pair, mlp_outputs(model, tokens.clean[pair])[1])
            for column, layer in enumerate((2, 0)):
                _, logits = mlp_outputs(model, tokens.clean[pair], (layer, corrupted[layer]))
                expected[pair, column] = float(clean - logit_diff(tokens, pair, logits))
    np.testing.assert_allclose(found.effects[:, 1:], expected, atol=2e-5)
    assert [row["head"] for row in found.as_rows()] == ["a1.h2", "m2", "m0"]


@pytest.mark.parametrize("method", ["attribution", "hybrid"])
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_an_mlps_product_is_its_change_times_the_gradient(
    tiny_model: Callable[..., Any], method: str, family: str
) -> None:
    """Against plain hooks and autograd; heads keep the scores that they have without MLPs."""
    model = tiny_model(family)
    tokens = tokenize(tasks.get("ioi").build(model.tokenizer, n=4), model.tokenizer)
    both = methods.get(method).find(Inputs(model, tokens, components="heads+mlps"))
    expected = np.zeros((len(tokens), model.n_layers))
    for pair in range(len(tokens)):
        with torch.no_grad():
            corrupted, _ = mlp_outputs(model, tokens.corrupt[pair])
        for layer in range(model.n_layers):
            with torch.no_grad():
                clean, _ = mlp_outputs(model, tokens.clean[pair])
            leaf = clean[layer].clone().requires_grad_(True)
            value = logit_diff(tokens, pair, mlp_outputs(model, tokens.clean[pair], (layer, leaf))[1])
            (gradient,) = torch.autograd.grad(value, leaf)
            expected[pair, layer] = float(((clean[layer] - corrupted[layer]) * gradient).sum())
    assert both.mlp_signed is not None
    np.testing.assert_allclose(both.mlp_signed, expected.mean(0), atol=2e-5)
    alone = methods.get(method).find(Inputs(model, tokens))
    np.testing.assert_allclose(both.signed, alone.signed, atol=1e-6)
    if method == "attribution":
        np.testing.assert_allclose(both.head_scores, alone.head_scores, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_codes_of_mlps_are_those_of_their_outputs(tiny_model: Callable[..., Any], family: str) -> None:
    """Further rows of the same autoencoder, worked out here by its own encoder from outputs of plain runs."""
    model = tiny_model(family)
    tokens = tokenize(tasks.get("ioi").build(model.tokenizer, n=10), model.tokenizer)
    found = methods.get("paper-scaled").find(Inputs(model, tokens, components="heads+mlps"))
    assert found.sae is not None
    assert found.codes is not None
    assert found.mlp_codes is not None
    with torch.no_grad():
        prompts = tokens.clean + tokens.corrupt
        rows = torch.stack(
            [torch.stack([y.reshape(len(ids), -1).mean(0) for y in mlp_outputs(model, ids)[0]]) for ids in prompts]
        )
        heads = Inputs(model, tokens).activations.head_outputs()
        together = torch.cat([heads, rows], dim=1)
        deviation = (together.square().mean() - together.mean() ** 2).sqrt()
        latents = torch.relu((rows / deviation - found.sae.b_dec) @ found.sae.W_enc + found.sae.b_enc)
    best = latents.max(-1)
    sure = latents.topk(2, -1).values.diff(dim=-1).abs().squeeze(-1) > 1e-4
    assert sure.float().mean() > 0.5
    expected = torch.where(best.values > 0, best.indices, 0)
    assert np.array_equal(found.mlp_codes[sure.numpy()], expected[sure].numpy())
    # Counted as heads' codes are.
    clean, corrupt = np.split(found.mlp_codes, 2)
    for layer in range(model.n_layers):
        assert found.other_nodes[f"m{layer}"] == len(set(clean[:, layer]) - set(corrupt[:, layer]))


@pytest.mark.parametrize("method", SCORING)
def test_every_method_but_some_scores_every_mlp(model: Any, tokens: Any, method: str) -> None:
    found = discover(model, tokens.pairs, method=method, components="heads+mlps", verify=None, n_train=4)
    assert {f"m{layer}" for layer in range(model.n_layers)} <= set(found.findings.other_nodes)
    assert np.isfinite(found.findings.part_scores).all()
    document = found.as_json()
    assert len(document["mlp_scores"]) == model.n_layers
    sizes = dict(zip([*found.components, "m0", "m1", "m2"], np.abs(found.findings.part_scores), strict=True))
    assert [*found.circuit(6).nodes] == sorted(sizes, key=lambda name: -sizes[name])[: len(found.circuit(6).nodes)]


@pytest.mark.parametrize("request_", [{"verify": "auto"}, {"verify": 9}, {"verify": "auto", "gradient": False}])
def test_mlps_are_confirmed_among_heads_and_kept_where_the_circuit_is_judged(
    model: Any, tokens: Any, request_: dict[str, Any]
) -> None:
    result = discover(model, tokens.pairs, components="heads+mlps", **request_)
    assert result.verification is not None
    order = np.argsort(-np.abs(result.findings.part_scores), kind="stable")
    assert result.verification.heads == [result.findings.parts[i] for i in order[: len(result.verification.heads)]]
    rows = {row["head"]: row for row in result.as_json()["verification"]}
    mlps = [name for name in rows if name.startswith("m")]
    assert mlps
    circuit = result.circuit()
    assert set(circuit.nodes) == {name for name, row in rows.items() if row["confirmed"]}
    truth = causal_truth(model, tokens.subset(range(8)), "heads+mlps", cache=False)
    effects = dict(zip(truth.names, truth.mean_effects, strict=True))
    for name in mlps:
        assert rows[name]["effect"] == pytest.approx(effects[name], abs=2e-5)
    for name in circuit.nodes:
        assert name in table(result, 20)
    # Held out: everything that is not in the circuit carries the corrupted prompt, MLPs too.
    held = tokens.subset(range(8, 10))
    inside = membership(model, circuit.parts)
    from headcodes.evaluation.faithfulness import behaviour

    means = behaviour(model, held, [inside * 0, inside]).logit_diff.mean(0)
    assert result.held_out is not None
    assert result.held_out["faithfulness"] == pytest.approx((means[3] - means[2]) / (means[0] - means[2]), abs=1e-5)
    assert result.held_out["faithfulness_without_mlps"] is None


def test_a_circuit_holds_the_parts_of_largest_effect_heads_or_mlps(model: Any, tokens: Any) -> None:
    result = discover(model, tokens.pairs, method="patching", components="heads+mlps")
    truth = causal_truth(model, tokens, "heads+mlps", cache=False)
    effects = dict(zip(truth.names, truth.mean_effects, strict=True))
    order = sorted(effects, key=lambda name: -abs(effects[name]))
    assert any(name.startswith("m") for name in order[:6])
    for top in (1, 6, 15):
        circuit = result.circuit(top)
        assert list(circuit.nodes) == order[:top]
        assert {name: circuit.node_scores[name] for name in effects} == pytest.approx(effects)
    assert result.as_json()["circuit_components"] == "heads+mlps"
    # Without being asked for, circuits hold heads alone, in the same order.
    heads = discover(model, tokens.pairs, method="patching")
    assert list(heads.circuit(12).nodes) == [name for name in order if name.startswith("a")]
    assert "circuit_components" not in heads.as_json()


@pytest.mark.parametrize("level", ["node", "edge"])
def test_mlps_are_shown_saved_exported_and_judged(model: Any, tokens: Any, tmp_path: Path, level: Any) -> None:
    method = "eap" if level == "edge" else "attribution"
    result = discover(model, tokens.pairs, method=method, level=level, components="heads+mlps", verify=None)
    # Some MLPs, not all: a graph that keeps every MLP says nothing of them.
    top = next(top for top in range(1, 12) if 0 < sum(name[0] == "m" for name in result.circuit(top).nodes) < 3)
    circuit = result.circuit(top)
    mlps = [name for name in circuit.nodes if name.startswith("m")]
    for name in circuit.nodes:
        assert name in table(result, top)
    result.save(tmp_path / "run", top=top)
    record = read_folder(tmp_path / "run")
    assert "--components heads+mlps" in record.command
    write_page(record, tmp_path / "page.html")
    assert f'"{mlps[0]}"' in (tmp_path / "page.html").read_text(encoding="utf-8")
    export(load_circuit(tmp_path / "run" / "circuit.json"), "mib", tmp_path / "graph.json")
    nodes = json.loads((tmp_path / "graph.json").read_text())["nodes"]
    assert {name for name, row in nodes.items() if row["in_graph"] and name[0] == "m"} == set(mlps)
    assert nodes["input"]["in_graph"]  # the embedding stays
    if level == "node":  # an edge is worth the lesser of its ends, heads or MLPs
        edges = json.loads((tmp_path / "graph.json").read_text())["edges"]
        for first, second in (("m0", "a2.h1"), ("a0.h1", "m1"), ("m0", "m2")):
            ends = [circuit.node_scores[name] for name in (first, second)]
            name = f"{first}->{second}" + "<q>" * second.startswith("a")
            assert edges[name]["score"] == min(ends, key=abs)
            chosen = {first, second} <= set(circuit.nodes)
            assert edges[name]["in_graph"] == chosen
    # The exported graph is judged as the circuit itself is.
    found = [
        evaluate_circuit(each, model, tokens, components="heads+mlps", top=5, n_pairs=4, with_curve=True, n_random=0)
        for each in (circuit, load_circuit(tmp_path / "graph.json"))
    ]
    assert found[0].components is not None
    assert np.isfinite(found[0].components["roc_auc"])
    for kind in ("faithfulness", "completeness"):
        assert found[1].faithfulness[kind] == pytest.approx(found[0].faithfulness[kind], abs=1e-6)  # type: ignore[index]
    assert found[1].areas["cpr"] == pytest.approx(found[0].areas["cpr"], abs=1e-6)  # type: ignore[index]
    assert found[0].curve is not None
    assert found[0].curve["sizes"][-1] == model.n_components + model.n_layers


def test_methods_that_score_no_mlps_refuse() -> None:
    with pytest.raises(HeadcodesError, match="All but dla, random"):
        check_request("hisp", components="heads+mlps")
    with pytest.raises(HeadcodesError, match="permutation"):
        check_request("paper", fdr=0.05, components="heads+mlps")
    with pytest.raises(HeadcodesError, match="heads or heads"):
        check_request("eap", components="mlps")
    check_request("default", verify=5, components="heads+mlps")
