"""The chain from prompts to a result, on tiny random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import headcodes
from headcodes import HeadcodesError, PromptPairs, tasks
from headcodes.circuit.circuit import Circuit
from headcodes.codes.recipes import RECIPES, normalisation, training_prompts
from headcodes.codes.sae import SparseAutoencoder
from headcodes.prompts.tokens import tokenize

pytestmark = pytest.mark.filterwarnings("ignore::headcodes.errors.HeadcodesWarning")

CODE_SETS = ("paper", "paper-scaled", "contrast")


@pytest.fixture(scope="module", params=CODE_SETS)
def result(request: pytest.FixtureRequest, model: Any, pairs: PromptPairs) -> Any:
    return headcodes.discover(model, pairs, method=request.param, level="edge")


def distinct(codes: np.ndarray, dead: int) -> set[tuple[int, ...]]:
    return {tuple(row) for row in codes.tolist() if dead not in row}


def test_scores_follow_from_the_codes_by_plain_set_arithmetic(result: Any, pairs: PromptPairs) -> None:
    if result.method == "contrast":
        pytest.skip("its scores are no counts of codes: tests/unit/methods/test_method_contrast.py, test_pairs.py")
    dead = -1 if RECIPES[result.method].dead == -1 else -2
    n_pairs, scored = len(pairs), result.findings.scored_prompts
    positive = result.codes[:n_pairs][scored[:n_pairs]]
    negative = result.codes[n_pairs:][scored[n_pairs:]]
    for i in range(12):
        unique = distinct(positive[:, [i]], dead) - distinct(negative[:, [i]], dead)
        assert result.head_scores.ravel()[i] == len(unique)
        for j in range(12):
            unique = distinct(positive[:, [i, j]], dead) - distinct(negative[:, [i, j]], dead)
            assert result.pair_scores[i, j] == (len(unique) if i != j else 0)


def test_codes_are_the_argmax_of_the_autoencoder_on_head_outputs(result: Any, model: Any, pairs: PromptPairs) -> None:
    recipe = RECIPES[result.method]
    tokens = tokenize(pairs, model.tokenizer)
    activations, _ = headcodes.capture(model, tokens.clean + tokens.corrupt)
    x = torch.einsum("nch,chd->ncd", activations.z.double(), activations.W_O.double())
    if recipe.scale == "head":
        x = (x - x.mean(0)) / x.var(0, unbiased=False).mean(-1, keepdim=True).sqrt()
    elif recipe.scale == "global":
        x = x / x.std(unbiased=False)
    sae = result.sae
    latents = ((x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()).relu()
    best = latents.topk(2).values
    clear = (best[..., 0] - best[..., 1] > 1e-4 * best[..., 0]) | (best[..., 0] == 0)
    expected = torch.where(best[..., 0] > 0, latents.argmax(-1), recipe.dead)
    assert clear.float().mean() > 0.95
    assert (expected.numpy() == result.codes)[clear.numpy()].all()


def test_json_holds_what_is_promised(result: Any) -> None:
    document = json.loads(json.dumps(result.as_json(top=5)))
    assert document["schema"] == 1
    assert document["components"] == [f"a{layer}.h{head}" for layer in range(3) for head in range(4)]
    assert document["head_scores"] == result.head_scores.ravel().tolist()
    assert ("mention_scores" in document) == (result.method != "contrast")
    assert sum(document.get("mention_scores", [6] * 12)) == 12 * 12 // 2
    scores = [score for _, _, score in document["pair_scores"]]
    assert scores == sorted(scores, reverse=True)
    assert all(i // 4 < j // 4 and result.pair_scores[i, j] == score for i, j, score in document["pair_scores"])
    confirmed = [row["head"] for row in document.get("verification", []) if row["confirmed"]]
    assert len(confirmed) == len(document["circuit"]["nodes"]) if confirmed else len(document["circuit"]["nodes"]) <= 5
    confirming = ["pairs", "verify", "edges", "judge"] if result.method == "contrast" else []
    stages = ["import", "load", "capture", "train", "encode", "overlap", *confirming, "total"]
    assert list(document["timings_s"]) == stages
    assert {"share_right", "positive_logit_diff", "negative_logit_diff"} <= set(document["task_check"])
    assert {"python", "headcodes", "torch"} <= set(document["versions"])


def test_node_level_has_the_same_head_scores_and_no_pairs(result: Any, model: Any, pairs: PromptPairs) -> None:
    node = headcodes.discover(model, pairs, method=result.method, level="node")
    assert (node.head_scores == result.head_scores).all()
    assert node.pair_scores is None
    assert not {"pair_scores", "mention_scores"} & set(node.as_json())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_autoencoder(
    model: Any, pairs: PromptPairs
) -> None:
    def document(seed: int) -> dict[str, Any]:
        document = headcodes.discover(model, pairs, level="edge", seed=seed).as_json()
        del document["timings_s"]
        return document

    assert json.dumps(document(0)) == json.dumps(document(0))
    assert document(0) != document(1)


@pytest.mark.parametrize("n", [1, 2, 10])
def test_few_pairs_get_a_result_too(model: Any, pairs: PromptPairs, n: int) -> None:
    for method in CODE_SETS:
        few = headcodes.discover(model, pairs.head(n), method=method, level="edge")
        assert np.isfinite(few.head_scores).all()
        assert few.findings.scored_prompts.any()


def test_held_out_prompts_and_balance() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = training_prompts(RECIPES["contrast"], 250, 10, generator)
    assert len(set(chosen)) == 10
    assert sorted(i + 250 for i in chosen if i < 250) == sorted(i for i in chosen if i >= 250)
    # The published draw: the first of one permutation of all prompts, from one generator.
    generator = torch.Generator().manual_seed(3)
    expected = torch.randperm(500, generator=torch.Generator().manual_seed(3))[:10].tolist()
    assert training_prompts(RECIPES["paper"], 250, 10, generator) == expected


def test_normalisation_agrees_with_materialised_outputs(model: Any, pairs: PromptPairs) -> None:
    tokens = tokenize(pairs, model.tokenizer)
    activations, _ = headcodes.capture(model, tokens.clean + tokens.corrupt)
    x = torch.einsum("nch,chd->ncd", activations.z.double(), activations.W_O.double())
    shift, scale = normalisation(RECIPES["contrast"], activations)
    assert shift is not None
    assert scale is not None
    torch.testing.assert_close(shift.double(), x.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scale.double(), x.var(0, unbiased=False).mean(-1).rsqrt(), rtol=1e-4, atol=0)
    shift, scale = normalisation(RECIPES["paper-scaled"], activations)
    assert shift is None
    assert scale is not None
    torch.testing.assert_close(scale.double(), (1 / x.std(unbiased=False)).expand(12), rtol=1e-4, atol=0)


def test_saved_folder_is_whole_and_readable_without_us(result: Any, tmp_path: Path) -> None:
    result.save(tmp_path, top=6)
    assert not list(tmp_path.rglob("*.part"))
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result.as_json(6)))
    assert Circuit.from_json(tmp_path / "circuit.json") == result.circuit(6)
    assert (load_file(tmp_path / "scores.safetensors")["pair_scores"] == result.pair_scores).all()
    assert torch.equal(SparseAutoencoder.load(tmp_path / "sae").W_enc, result.sae.W_enc)
    assert PromptPairs.from_json(tmp_path / "prompts.json") == result.pairs
    assert "<html" in (tmp_path / "page.html").read_text()


def test_bad_input_is_refused_before_any_work(model: Any, pairs: PromptPairs) -> None:
    for wrong in ({"method": "acdcc"}, {"n_train": 0}, {"positions": "first"}, {"threads": 0}, {"bos": "maybe"}):
        with pytest.raises(HeadcodesError):
            headcodes.discover(model, pairs, **wrong)
    with pytest.raises(HeadcodesError, match="level"):
        headcodes.discover(model, pairs, level="path")  # type: ignore[arg-type]


def test_threads_are_given_back(model: Any, pairs: PromptPairs) -> None:
    before = torch.get_num_threads()
    assert headcodes.discover(model, pairs.head(4), threads=1).threads == 1
    assert torch.get_num_threads() == before


def test_fdr_is_a_column_and_a_filter_that_leaves_scores_alone(model: Any, pairs: PromptPairs) -> None:
    plain = headcodes.discover(model, pairs, method="paper", level="edge")
    tested = headcodes.discover(model, pairs, method="paper", level="edge", fdr=0.5)
    assert (plain.head_scores == tested.head_scores).all()
    tests = tested.node_tests
    assert tests.p.min() >= 1 / (tests.n_permutations + 1)
    passed = {name for name, q in zip(tested.components, tests.q, strict=True) if q <= 0.5}
    assert set(tested.circuit().nodes) == passed & set(plain.circuit(top=12).nodes)
    assert tested.as_json()["q_values"] == tests.q.tolist()
    assert "q_values" not in plain.as_json()
    # The pairs that trained the autoencoder are left out of the test.
    n_trained_pairs = len(
        {i % 30 for i in training_prompts(RECIPES["paper"], 30, 10, torch.Generator().manual_seed(0))}
    )
    assert len(tested.findings.counted[0]) == 30 - n_trained_pairs


def test_fdr_needs_counts_of_codes_and_untrained_pairs(model: Any, pairs: PromptPairs) -> None:
    with pytest.raises(HeadcodesError, match="permutation"):
        headcodes.discover(model, pairs, method="mean-diff", fdr=0.05)
    with pytest.raises(HeadcodesError, match="did not train"):
        headcodes.discover(model, pairs.head(1), method="paper", fdr=0.05)
    with pytest.raises(HeadcodesError, match="fdr"):
        headcodes.discover(model, pairs, method="paper", fdr=0)


def test_verify_patches_the_best_heads_and_leaves_scores_alone() -> None:
    model = headcodes.load_model("planted-ioi")
    pairs = tasks.get("ioi").build(model.tokenizer, n=40, seed=0)
    plain = headcodes.discover(model, pairs, method="mean-diff")
    checked = headcodes.discover(model, pairs, method="mean-diff", verify=12)
    assert (plain.head_scores == checked.head_scores).all()
    best = np.argsort(-plain.head_scores.ravel(), kind="stable")[:12]
    rows = {row["head"]: row["effect"] for row in checked.as_json()["verification"]}
    assert list(rows) == [plain.components[i] for i in best]
    truth = headcodes.discover(model, pairs.head(32), method="patching").head_scores
    for i in best:
        assert abs(rows[plain.components[i]]) == pytest.approx(truth.ravel()[i], abs=1e-3)


@pytest.mark.parametrize("level", ["node", "edge"])
@pytest.mark.filterwarnings("ignore::headcodes.errors.HeadcodesWarning")
def test_bench_evaluate_and_the_exported_graph_give_one_cpr(
    tiny_model: Callable[..., Any], tmp_path: Path, level: Any
) -> None:
    from headcodes.circuit.formats import export, load_circuit
    from headcodes.comparison.judge import faithfulness
    from headcodes.evaluation.areas import head_cpr_cmd
    from headcodes.evaluation.evaluate import evaluate_circuit
    from headcodes.interventions.patch import answered

    model = tiny_model("gpt2")
    tokens = answered(model, tokenize(tasks.get("ioi").build(model.tokenizer, n=24), model.tokenizer), 6)[0]
    result = headcodes.discover(model, tokens.pairs, method="eap", level=level)
    result.save(tmp_path / "run")
    export(load_circuit(tmp_path / "run" / "circuit.json"), "mib", tmp_path / "graph.json")
    assert result.findings.signed is not None
    assert min(result.circuit().node_scores.values()) < 0
    assert result.circuit().nodes[0] == max(model.components, key=lambda name: abs(result.circuit().node_scores[name]))
    its = result.findings
    bench = faithfulness(model, tokens, result.head_scores, its.signed_scores if level == "node" else its.edges)
    for file in ("run/circuit.json", "graph.json"):
        found = evaluate_circuit(load_circuit(tmp_path / file), model, tokens, truth=None, with_curve=True, n_random=0)
        areas = found.areas if level == "node" else found.edge_areas
        assert areas is not None
        assert (areas["cpr"], areas["cmd"]) == pytest.approx((bench["cpr"], bench["cmd"]), abs=1e-6)
        if level == "node":
            assert found.curve is not None
            assert found.curve["faithfulness"] == pytest.approx(bench["faithfulness"])
    if level == "node":
        assert head_cpr_cmd(model, tokens, result.head_scores)["cpr"] != pytest.approx(bench["cpr"])
