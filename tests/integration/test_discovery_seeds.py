"""Several seeds at once: each is bit for bit the one alone, and what they share is done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import headcodes
from headcodes import HeadcodesError, HeadcodesWarning, PromptPairs, methods, tasks
from headcodes.circuit.circuit import Circuit
from headcodes.methods.inputs import Inputs
from headcodes.methods.request import check_request
from headcodes.prompts.tokens import tokenize
from headcodes.report.folders import read_folder

pytestmark = pytest.mark.filterwarnings("ignore::headcodes.errors.HeadcodesWarning")


SEEDS = (4, 0, 9)


SEEDED = [name for name, method in methods.METHODS.items() if method.seeded]


@pytest.fixture(scope="module")
def by_seeds(model: Any, pairs: PromptPairs) -> Any:
    return headcodes.discover(model, pairs, method="paper", level="edge", seeds=SEEDS)


@pytest.mark.parametrize("method", SEEDED)
def test_several_seeds_are_each_alone_bit_for_bit(model: Any, pairs: PromptPairs, method: str) -> None:
    few, level = pairs.head(8), methods.get(method).levels[-1]
    together = headcodes.discover(model, few, method=method, level=level, seeds=SEEDS)
    alone = [headcodes.discover(model, few, method=method, level=level, seed=seed) for seed in SEEDS]
    assert together.by_seed.seeds == SEEDS
    assert len({result.head_scores.tobytes() for result in alone}) > 1
    for kind in ("head_scores", "pair_scores", "mention_scores"):
        rows, means = getattr(together.by_seed, kind), getattr(together, kind)
        assert (rows is None) == (means is None) == (getattr(alone[0], kind) is None)
        if rows is None:
            continue
        for row, result in zip(rows, alone, strict=True):
            np.testing.assert_array_equal(row, getattr(result, kind))
        np.testing.assert_allclose(means, sum(getattr(result, kind) for result in alone) / 3, rtol=1e-12)
    if alone[0].codes is not None:
        np.testing.assert_array_equal(together.codes, alone[0].codes)
        assert torch.equal(together.sae.W_enc, alone[0].sae.W_enc)
    assert set(together.timings_s) == set(alone[0].timings_s)


def test_methods_say_rightly_whether_they_draw(model: Any, pairs: PromptPairs) -> None:
    inputs = Inputs(model, tokenize(pairs.head(4), model.tokenizer))
    for name, method in methods.METHODS.items():
        first, other = (method.find(inputs, seed=seed).head_scores for seed in (0, 1))
        assert method.seeded != np.array_equal(first, other), name


def test_a_method_that_draws_nothing_runs_once_and_says_so(
    model: Any, pairs: PromptPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headcodes.methods import mean_diff

    plain = headcodes.discover(model, pairs, method="mean-diff").as_json()
    calls, find = [], mean_diff.find
    monkeypatch.setattr(mean_diff, "find", lambda *rest: calls.append(0) or find(*rest))
    with pytest.warns(HeadcodesWarning, match="draws nothing"):
        once = headcodes.discover(model, pairs, method="mean-diff", seeds=range(5)).as_json()
    assert len(calls) == 1
    for document in (plain, once):
        del document["timings_s"]
    assert once == plain


@pytest.mark.parametrize("method", ["paper", "contrast", "attribution", "code-flip", "hybrid"])
def test_seeds_share_capture_training_encoding_and_all_else_they_can(
    model: Any, pairs: PromptPairs, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from headcodes.codes import recipes
    from headcodes.methods import attribution, inputs

    calls: dict[str, int] = {}

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    # Which measures what contrast needs, too.
    counted(inputs, "capture_pairs")
    counted(recipes, "normalisation")
    counted(recipes, "train_many")
    counted(recipes, "encode")
    counted(attribution, "products")
    headcodes.discover(model, pairs.head(8), method=method, seeds=range(3))
    own = {"attribution": {"products"}, "hybrid": {"products"}}.get(method, set())
    assert calls == dict.fromkeys({"capture_pairs", "normalisation", "train_many", "encode"} | own, 1)


def test_seeds_in_files(by_seeds: Any, tmp_path: Path) -> None:
    by_seeds.save(tmp_path, top=4)
    document = json.loads((tmp_path / "result.json").read_text())
    arrays = load_file(tmp_path / "scores.safetensors")
    seeds = by_seeds.by_seed
    assert document["seeds"] == arrays["seeds"].tolist() == list(SEEDS)
    for name, expected in (
        ("head_spread", seeds.head_spread),
        ("head_consensus", seeds.head_consensus(4)),
        ("mention_spread", seeds.mention_spread),
        ("mention_consensus", seeds.mention_consensus(4)),
    ):
        np.testing.assert_array_equal(document[name], expected.ravel())
        np.testing.assert_array_equal(arrays[name], expected)
    for name, expected in (("pair_spread", seeds.pair_spread), ("pair_consensus", seeds.pair_consensus(4))):
        np.testing.assert_array_equal(document[name], [expected[i, j] for i, j, _ in document["pair_scores"]])
        np.testing.assert_array_equal(arrays[name], expected)
    assert max(document["pair_spread"]) > 0
    assert max(document["pair_consensus"]) > 0
    np.testing.assert_array_equal(arrays["head_scores_by_seed"], seeds.head_scores)
    np.testing.assert_array_equal(arrays["mention_scores_by_seed"], seeds.mention_scores)
    record = read_folder(tmp_path)
    np.testing.assert_array_equal(record.head_values["spread"], seeds.head_spread)
    np.testing.assert_array_equal(record.head_values["consensus"], seeds.head_consensus(4))
    assert "--seed 0 " in record.command + " "
    assert record.command.endswith("--seeds 4,0,9")


def test_files_of_one_seed_know_nothing_of_seeds(model: Any, pairs: PromptPairs, by_seeds: Any, tmp_path: Path) -> None:
    single = headcodes.discover(model, pairs, method="paper", level="edge")
    assert single.by_seed is None
    single.save(tmp_path)
    words = ("seeds", "spread", "consensus", "by_seed")
    for names in (json.loads((tmp_path / "result.json").read_text()), load_file(tmp_path / "scores.safetensors")):
        assert not [name for name in names if any(word in name for word in words)]
    assert "spread" not in read_folder(tmp_path).head_values
    assert "--seeds" not in read_folder(tmp_path).command
    # A report lays runs of single seeds side by side; the mean of several is none of them.
    assert len({by_seeds.record().group, single.record().group}) == 2


def test_the_circuit_of_several_seeds_is_that_of_the_means(by_seeds: Any) -> None:
    expected = Circuit.from_scores(by_seeds.by_seed.head_scores.mean(0), top=5)
    assert by_seeds.circuit(5).nodes == expected.nodes
    assert "mean of 3 seeds" in repr(by_seeds)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"seeds": []}, "seeds must be whole numbers"),
        ({"seeds": [0, -1]}, "seeds must be whole numbers"),
        ({"seeds": [0, 1, 0]}, "seeds must be whole numbers"),
        ({"seeds": range(3), "fdr": 0.05}, "one seed's codes"),
    ],
)
def test_seeds_that_cannot_be(model: Any, pairs: PromptPairs, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(HeadcodesError, match=says):
        headcodes.discover(model, pairs, method="paper", **arguments)
    with pytest.raises(HeadcodesError, match=says):  # what the command line asks before it opens a model
        check_request("paper", **arguments)


def test_one_seed_of_a_list_is_that_seed(model: Any, pairs: PromptPairs) -> None:
    listed = headcodes.discover(model, pairs, method="contrast", seeds=[3])
    alone = headcodes.discover(model, pairs, method="contrast", seed=3)
    np.testing.assert_array_equal(listed.head_scores, alone.head_scores)
    assert not listed.by_seed.head_spread.any()


def test_verify_patches_the_heads_of_best_mean() -> None:
    model = headcodes.load_model("planted-ioi")
    pairs = tasks.get("ioi").build(model.tokenizer, n=20, seed=0)
    result = headcodes.discover(model, pairs, method="random", seeds=range(3), verify=4)
    best = np.argsort(-result.by_seed.head_scores.mean(0).ravel(), kind="stable")[:4]
    assert [row["head"] for row in result.as_json()["verification"]] == [result.components[i] for i in best]
