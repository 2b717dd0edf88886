"""Places of prompts, and scores told apart by them, against exact patching at single positions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headcodes import HeadcodesError, discover, methods, tasks
from headcodes.interventions.patch import answered
from headcodes.methods.inputs import Inputs
from headcodes.prompts.alignment import align
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.prompts.tokens import TokenPairs, tokenize
from headcodes.report.folders import read_folder
from headcodes.report.summary import run_summary


def pairs_of(*rows: tuple[list[int], list[int]]) -> TokenPairs:
    pairs = PromptPairs(tuple(PromptPair(f"c{i}", f"d{i}", ("a",), ("b",)) for i in range(len(rows))), "made", "up")
    clean, corrupt = [list(side) for side in zip(*rows, strict=True)]
    return TokenPairs(
        clean, corrupt, [[1]] * len(rows), [[2]] * len(rows), False, pairs, {i: f"<{i}>" for i in range(9)}
    )


def test_prompts_of_one_length_are_aligned_token_by_token() -> None:
    found = align(pairs_of(([1, 2, 3], [1, 4, 3]), ([5, 2, 3], [1, 2, 3])))
    assert (found.kind, found.labels, found.examples) == ("token", ("0", "1", "2"), ("<1>", "<2>", "<3>"))
    assert found.of_tokens == ((0, 1, 2), (0, 1, 2))


def test_prompts_of_several_lengths_are_aligned_by_runs_of_changes() -> None:
    found = align(pairs_of(([1, 2, 3, 4, 5], [1, 6, 7, 4, 5]), ([2, 3, 4, 5], [8, 3, 4, 5])))
    assert (found.kind, found.labels) == ("run", ("change 1", "after the changes", "last token"))
    assert found.examples == ("<2><3>", "<4>", "<5>")
    assert found.of_tokens == ((-1, 0, 0, 1, 2), (0, 1, 1, 2))
    two = align(pairs_of(([1, 2, 3, 4, 5], [6, 2, 7, 4, 5]), ([2, 3, 4, 5], [8, 3, 6, 7])))
    assert two.labels == ("change 1", "between the changes", "change 2", "after the changes", "last token")
    # A changed last token is the last one.
    assert two.of_tokens == ((0, 1, 2, 3, 4), (0, 1, 2, 4))


def test_prompts_that_differ_in_what_changes_are_told_apart_by_group() -> None:
    found = align(pairs_of(([1, 2, 3, 4, 5], [6, 2, 7, 4, 5]), ([2, 3, 4, 5], [8, 3, 4, 5])))
    assert (found.kind, found.labels) == ("group", ("changed", "between", "last"))
    assert found.of_tokens == ((0, 1, 0, 1, 2), (0, 1, 1, 2))


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("gpt2")


@pytest.fixture(scope="module", params=["one length", "several"])
def tokens(model: Any, request: pytest.FixtureRequest) -> Any:
    found = answered(model, tokenize(tasks.get("ioi").build(model.tokenizer, n=20, seed=1), model.tokenizer), 6)[0]
    if request.param == "one length":
        most = max({len(ids) for ids in found.clean}, key=[len(ids) for ids in found.clean].count)
        found = found.subset([i for i, ids in enumerate(found.clean) if len(ids) == most])
    return found


@pytest.mark.parametrize("method", ["attribution", "hybrid", "eap", "eap-ig-inputs"])
def test_scores_by_place_add_up_to_the_whole(model: Any, tokens: Any, method: str) -> None:
    found = methods.get(method).find(Inputs(model, tokens, components="heads+mlps"))
    found.components = "heads+mlps"
    assert found.by_place is not None
    assert found.by_place.shape == (model.n_components + model.n_layers, len(align(tokens).labels))
    np.testing.assert_allclose(found.by_place.sum(1), found.part_effects, atol=1e-6)


def test_a_place_is_worth_its_own_products(model: Any, tokens: Any) -> None:
    """What one place adds is what the method finds with the positions of this place alone."""
    from headcodes.settings import Settings

    alignment = align(tokens)
    whole = methods.get("eap").find(Inputs(model, tokens)).by_place
    assert whole is not None
    for place in range(len(alignment.labels)):
        positions = [[i for i, its in enumerate(row) if its == place] for row in alignment.of_tokens] * 2
        if all(positions):
            part = methods.get("eap").find(Inputs(model, tokens, Settings(positions=positions)))
            assert part.signed is not None
            np.testing.assert_allclose(part.signed.ravel(), whole[: model.n_components, place], atol=1e-7)


def test_patching_tells_places_apart_exactly(model: Any, tokens: Any) -> None:
    """Against plain hooks that put one head's, or MLP's, corrupted output in at single positions."""
    found = methods.get("patching").find(Inputs(model, tokens, components="heads+mlps"))
    found.components = "heads+mlps"
    alignment = align(tokens)
    assert found.alignment == alignment
    assert found.by_place is not None
    rows = [i for i in range(len(found.by_place)) if np.isfinite(found.by_place[i]).all()]
    assert rows
    assert len(rows) <= 20

    def module_of(part: Any) -> Any:
        return model.mlp(part[0]) if part[1] is None else model.projections[part[0]]

    def run(ids: list[int], part: Any, places: list[int], other: Any) -> tuple[Any, Any]:
        seen = []

        def heads(_module: Any, args: Any) -> Any:
            x = args[0].clone()
            seen.append(args[0].clone())
            cut = slice(part[1] * model.d_head, (part[1] + 1) * model.d_head)
            if other is not None:
                x[0, places, cut] = other[0, places, cut]
            return (x,)

        def mlp(_module: Any, _args: Any, y: Any) -> Any:
            seen.append(y.clone())
            y = y.clone()
            if other is not None:
                y[0, places] = other[0, places]
            return y

        module = module_of(part)
        hook = module.register_forward_hook(mlp) if part[1] is None else module.register_forward_pre_hook(heads)
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        hook.remove()
        return seen[0], logits

    def value(pair: int, logits: Any) -> float:
        sides = (tokens.answers[pair], tokens.wrong_answers[pair])
        right, wrong = (float(logits[ids].logsumexp(0)) for ids in sides)
        return right - wrong

    for i in (rows[0], rows[-1]):
        part = found.parts[i]
        for place in range(len(alignment.labels)):
            lost = []
            for pair in range(len(tokens)):
                corrupted, _ = run(tokens.corrupt[pair], part, [], None)
                at = [position for position, its in enumerate(alignment.of_tokens[pair]) if its == place]
                clean = value(pair, run(tokens.clean[pair], part, [], None)[1])
                lost.append(clean - value(pair, run(tokens.clean[pair], part, at, corrupted)[1]))
            assert found.by_place[i, place] == pytest.approx(np.mean(lost), abs=2e-5)


@pytest.mark.parametrize("method", ["default", "patching"])
def test_places_are_in_the_result_and_on_the_page(model: Any, tokens: Any, tmp_path: Path, method: str) -> None:
    result = discover(model, tokens.pairs, method=method, verify=None)
    result.save(tmp_path / "run", top=4)
    document = result.as_json(4)["scores_by_position"]
    assert set(document["scores"]) == set(result.circuit(4).nodes)
    assert len(document["labels"]) == len(document["examples"])
    page = run_summary(read_folder(tmp_path / "run"))
    assert page["positions"] == document
    assert "Where in the prompt" in (tmp_path / "run" / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": ["a"]},
        {"kind": "<b>"},
        {"scores": {"a0.h0": [float("inf"), 0.0]}},
        {"scores": {"a0.h0": ["x", 0.0]}},
        {"examples": [1, 2]},
        {"labels": None},
    ],
)
def test_scores_by_place_of_another_form_are_refused(
    tmp_path: Path, wrong: dict[str, Any], model: Any, tokens: Any
) -> None:
    discover(model, tokens.pairs, method="mean-diff").save(tmp_path / "run", top=4)
    path = tmp_path / "run" / "result.json"
    right = {"kind": "run", "labels": ["a", "b"], "examples": [], "scores": {"a0.h0": [1.0, 0.0]}}
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"scores_by_position": right}))
    assert read_folder(tmp_path / "run").positions == right
    path.write_text(json.dumps(document | {"scores_by_position": right | wrong}))
    with pytest.raises(HeadcodesError, match=r"belong together|finite|NaN|'scores_by_position\..* must be"):
        read_folder(tmp_path / "run")
