"""What a model is found to do when it is opened, held to sums and disturbances worked out apart from it."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import made_pairs
from headcodes.activations.capture import capture
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.interventions.patch import causal_truth
from headcodes.methods import dla, eap
from headcodes.methods.inputs import Inputs
from headcodes.models.load import load_model
from headcodes.models.model import Model
from headcodes.prompts.tokens import TokenPairs
from tiny_families import ROWS, known, make, table

# Families with nodes only, and what they are told.
NO_EDGES = {
    "CodeGen": "where queries, keys and values lie",
    "Falcon, grouped": "where queries, keys and values lie",
    "OPT, norms behind": "no final norm",
}
PARALLEL = {
    "GPT-NeoX, parallel",
    "GPT-J",
    "CodeGen",
    "Falcon, multi-query",
    "Falcon, grouped",
    "Phi",
    "Cohere",
    "Cohere 2",
}
# Their attention knows no mask of a query's own, or a window shorter than the prompts.
NO_SHARED_ROWS = {"BLOOM", "MPT", "Falcon, sequential", "Mistral, window of 4"}
IDS = torch.tensor([[5, 70, 31, 41, 9, 62, 77], [8, 9, 10, 11, 12, 13, 14]])


token_pairs = partial(made_pairs.token_pairs, n=3, seed=3, lengths=(7, 6), n_right=(2,), n_wrong=(3,), n_vocab=97)


def results(model: Model, prompt: list[int]) -> list[torch.Tensor]:
    """Every layer's head results [seq, column] on one prompt alone, by hooks of our own."""
    kept: list[torch.Tensor] = []
    hooks = [p.register_forward_pre_hook(lambda _m, args: kept.append(args[0][0])) for p in model.projections]
    with torch.no_grad():
        model.module(input_ids=torch.tensor([prompt]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return kept


@pytest.fixture(scope="module", params=ROWS)
def family(request: pytest.FixtureRequest) -> tuple[str, Model]:
    if not known(request.param):
        pytest.skip(f"the installed transformers does not know {request.param}")
    return request.param, load_model(make(request.param))


def test_heads_add_up_to_what_their_projection_computes(family: tuple[str, Model]) -> None:
    _, model = family
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    hooks = [
        part.register_forward_hook(lambda _m, args, out, layer=layer: seen.append((layer, args[0], out.clone())))
        for layer, part in enumerate(model.projections)
    ]
    with torch.no_grad():
        model.module(input_ids=IDS, use_cache=False)
        for hook in hooks:
            hook.remove()
        for layer, z, out in seen:
            none = model.projections[layer](torch.zeros_like(z))
            heads = torch.einsum("bshd,hdm->bsm", model.by_head(layer, z), model.W_O[layer])
            torch.testing.assert_close(heads + none, out, atol=1e-5, rtol=1e-4)


def test_the_logits_asked_for_are_the_models_own(family: tuple[str, Model]) -> None:
    _, model = family
    with torch.no_grad():
        expected = model.module(input_ids=IDS).logits[[0, 1], [6, 3]].float()
        for vocab in (None, torch.tensor([12, 5, 70])):
            found = model.trace(IDS, logits_at=torch.tensor([6, 3]), vocab=vocab)
            chosen = expected if vocab is None else expected[:, vocab]
            torch.testing.assert_close(found, chosen, atol=1e-4, rtol=1e-4)


def test_captured_heads_are_those_of_each_prompt_alone(family: tuple[str, Model]) -> None:
    name, model = family
    assert model.facts.shares_rows == (name not in NO_SHARED_ROWS)
    prompts = [[5, 70, 31, 41, 9, 62], [5, 70, 31, 41, 9, 8], [5, 70, 31, 41, 8], [9, 6]]
    found = capture(model, prompts)[0].z.view(4, model.n_layers, model.n_heads, model.d_head)
    for row, prompt in enumerate(prompts):
        for layer, z in enumerate(results(model, prompt)):
            torch.testing.assert_close(found[row, layer], model.by_head(layer, z.mean(0)), atol=2e-5, rtol=1e-3)


def test_a_nodes_edges_add_up_to_its_score_or_are_refused(family: tuple[str, Model]) -> None:
    name, model = family
    inputs = Inputs(model, token_pairs())
    if name in NO_EDGES:
        with pytest.raises(HeadcodesError, match=NO_EDGES[name]):
            eap.find("eap", inputs, "edge", 0)
        assert eap.find("eap", inputs, "node", 0).head_scores.any()
        return
    found = eap.find("eap", inputs, "edge", 0)
    assert found.edges is not None
    assert found.signed is not None
    totals = dict(zip(found.edges.sources, np.nansum(found.edges.scores, axis=1), strict=True))
    scores = found.other_nodes | dict(zip(model.components, found.signed.ravel(), strict=True))
    size = max(abs(score) for score in scores.values())
    for node, score in scores.items():
        assert totals[node] == pytest.approx(score, abs=1e-4 * size, rel=1e-3), node


def test_mlps_read_their_own_layers_heads_or_do_not(family: tuple[str, Model]) -> None:
    """Changing layer 0's heads changes what its MLP is given, or does not: by a pass of our own."""
    name, model = family
    reader = model.mlp_reader(0)
    assert reader is not None
    given: list[torch.Tensor] = []
    watch = reader.register_forward_pre_hook(lambda _m, args: given.append(args[0].clone()))
    with torch.no_grad():
        model.module(input_ids=IDS, use_cache=False)
        double = model.projections[0].register_forward_pre_hook(lambda _m, args: (2 * args[0],))
        model.module(input_ids=IDS, use_cache=False)
    watch.remove()
    double.remove()
    assert torch.equal(*given) == model.parallel_attn_mlp == (name in PARALLEL)


def test_patching_and_direct_attribution_hold_for_every_family(family: tuple[str, Model]) -> None:
    name, model = family
    tokens = token_pairs()
    with warnings.catch_warnings():
        if name in ("BLOOM", "MPT") or model.final_norm is None:
            # Layers given a bias for the rows at hand, and no final norm (OPT-350m): the walk says that it cannot be.
            warnings.simplefilter("ignore", HeadcodesWarning)
        walked = causal_truth(model, flipped(model, tokens), cache=False, progress=False)
    whole = causal_truth(model, flipped(model, tokens), cache=False, progress=False, engine="forward")
    np.testing.assert_allclose(walked.effects, whole.effects, atol=1e-4, rtol=1e-3)
    if model.facts.stream is None:
        assert np.isfinite(dla.find("dla", Inputs(model, tokens), "node", 0).head_scores).all()
    else:
        with pytest.raises(HeadcodesError, match=NO_EDGES[name]):
            dla.find("dla", Inputs(model, tokens), "node", 0)


def flipped(model: Model, tokens: TokenPairs) -> TokenPairs:
    """The same with answers such that the model is right."""
    right, wrong = [], []
    for prompt, answers, others in zip(tokens.clean, tokens.answers, tokens.wrong_answers, strict=True):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([prompt])).logits[0, -1]
        good = bool(logits[answers].logsumexp(0) > logits[others].logsumexp(0))
        right.append(answers if good else others)
        wrong.append(others if good else answers)
    return TokenPairs(tokens.clean, tokens.corrupt, right, wrong, tokens.bos, tokens.pairs)


def test_docs_list_what_every_family_is_found_to_do() -> None:
    """Made anew by ``python tests/tiny_families.py``."""
    if not all(map(known, ROWS)):
        pytest.skip("the installed transformers does not know every family")
    assert table() in (Path(__file__).parents[3] / "docs" / "models.md").read_text()


# TransformerLens 4.3 opens none of these.
UNKNOWN_TO_TRANSFORMER_LENS = {"CodeGen", "OPT, norms behind", "Falcon, grouped", "Gemma 4, widths by layer"}


@pytest.mark.parametrize("name", [name for name in ROWS if name not in UNKNOWN_TO_TRANSFORMER_LENS])
def test_heads_and_their_order_are_those_of_transformer_lens(name: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    lens = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens is not installed")
    if not known(name):
        pytest.skip(f"the installed transformers does not know {name}")
    from transformers import AutoTokenizer

    tiny_tokenizer.save_pretrained(tmp_path)
    hf = make(name, attn_implementation="eager")  # TransformerLens asks for it
    ours, twin = load_model(hf), copy.deepcopy(hf)
    twin.config.architectures = [type(hf).__name__]
    theirs = lens.TransformerBridge.boot_transformers(
        "tiny", hf_model=twin, tokenizer=AutoTokenizer.from_pretrained(tmp_path)
    )
    with torch.no_grad():
        _, cache = theirs.run_with_cache(IDS[:1], prepend_bos=False)
        for layer, z in enumerate(results(ours, IDS[0].tolist())):
            expected = cache[f"blocks.{layer}.attn.hook_z"].reshape(z.shape)
            torch.testing.assert_close(z, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.W_O, theirs.W_O, atol=1e-6, rtol=1e-5)
    assert ours.parallel_attn_mlp == bool(theirs.cfg.parallel_attn_mlp)
