"""MLPs as members of a circuit: chosen among heads, drawn, exported, judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcodes import HeadcodesError, discover, tasks
from headcodes.circuit.formats import export, load_circuit
from headcodes.cli.table import table
from headcodes.discovery import check_request
from headcodes.evaluation.evaluate import evaluate_circuit
from headcodes.interventions.patch import answered, causal_truth
from headcodes.prompts.tokens import tokenize
from headcodes.report.folders import read_folder
from headcodes.report.page import write_page


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def tokens(model: Any) -> Any:
    return answered(model, tokenize(tasks.get("ioi").build(model.tokenizer, n=16), model.tokenizer), 4)[0]


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


def test_mlps_are_shown_saved_exported_and_judged(model: Any, tokens: Any, tmp_path: Path) -> None:
    result = discover(model, tokens.pairs, method="eap", level="edge", components="heads+mlps")
    circuit = result.circuit(8)
    mlps = [name for name in circuit.nodes if name.startswith("m")]
    assert mlps
    for name in circuit.nodes:
        assert name in table(result, 8)
    result.save(tmp_path / "run", top=8)
    write_page(read_folder(tmp_path / "run"), tmp_path / "page.html")
    assert f'"{mlps[0]}"' in (tmp_path / "page.html").read_text(encoding="utf-8")
    export(load_circuit(tmp_path / "run" / "circuit.json"), "mib", tmp_path / "graph.json")
    nodes = json.loads((tmp_path / "graph.json").read_text())["nodes"]
    assert {name for name, row in nodes.items() if row["in_graph"] and name[0] == "m"} == set(mlps)
    found = evaluate_circuit(circuit, model, tokens, components="heads+mlps", top=5, n_pairs=4)
    assert found.components is not None
    assert np.isfinite(found.components["roc_auc"])


def test_methods_that_score_no_mlps_refuse() -> None:
    with pytest.raises(HeadcodesError, match="Use one of: eap, eap-ig-inputs"):
        check_request("default", components="heads+mlps")
    with pytest.raises(HeadcodesError, match="verify=5"):
        check_request("eap", verify=5, components="heads+mlps")
    with pytest.raises(HeadcodesError, match="heads or heads"):
        check_request("eap", components="mlps")
