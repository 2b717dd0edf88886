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
from headcodes.interventions.engine import Compute
from headcodes.interventions.patch import causal_truth
from headcodes.methods import dla, eap
from headcodes.methods.inputs import Inputs
from headcodes.models.load import load_model
from headcodes.models.model import Model
from headcodes.models.slots import slot_projection
from tiny_families import FURTHER, REFUSED, ROWS, known, make, table

# Others that were not read right, or not at all, when they were first tried.
MENDED = ["Granite, experts", "Llama 4", "XGLM", "BioGPT", "GPT", "LFM3", "Zaya"]
# Families with nodes only, and what they are told.
HYBRIDS = list(ROWS)[list(ROWS).index("Qwen 3-Next") :]
NO_EDGES = dict.fromkeys(HYBRIDS, "no heads and no MLPs") | {
    "OPT, norms behind": "no final norm",
    "GPT": "no final norm",
    "MiniMax": "do not add up",
    "Zaya": "do not add up",
    "LFM3": "read more of the stream",
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
NO_SHARED_ROWS = {"BLOOM", "MPT", "Falcon, sequential", "Mistral, window of 4", "GPT", "LFM3", "Zaya", *HYBRIDS}
IDS = torch.tensor([[5, 70, 31, 41, 9, 62, 77], [8, 9, 10, 11, 12, 13, 14]])


token_pairs = partial(made_pairs.token_pairs, n=3, seed=3, lengths=(7, 6), n_right=(2,), n_wrong=(3,), n_vocab=97)


def results(model: Model, prompt: list[int]) -> dict[int, torch.Tensor]:
    """The head results [seq, column] of every layer that has some, on one prompt alone, by hooks of our own."""
    kept: dict[int, torch.Tensor] = {}
    hooks = [
        part.register_forward_pre_hook(lambda _m, args, layer=layer: kept.__setitem__(layer, args[0][0]))
        for layer, part in enumerate(model.projections)
    ]
    with torch.no_grad():
        model.module(input_ids=torch.tensor([prompt]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return kept


@pytest.fixture(scope="module", params=[*ROWS, *MENDED])
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
        by_layer = results(model, prompt)
        assert set(range(model.n_layers)) - set(by_layer) == set(model.without_heads)
        assert not found[row, list(model.without_heads)].any()
        for layer, z in by_layer.items():
            torch.testing.assert_close(found[row, layer], model.by_head(layer, z.mean(0)), atol=2e-5, rtol=1e-3)


def test_a_nodes_edges_add_up_to_its_score_or_are_refused(family: tuple[str, Model]) -> None:
    name, model = family
    inputs = Inputs(model, token_pairs())
    if name in NO_EDGES:
        with pytest.raises(HeadcodesError, match=NO_EDGES[name]):
            eap.find("eap", inputs, "edge", 0)
        scores = eap.find("eap", inputs, "node", 0).head_scores
        assert scores[model.real_heads].all()
        assert not scores[~model.real_heads].any()
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
    """Changing a layer's heads changes what its MLP is given, or does not: by a pass of our own."""
    name, model = family
    first = next(layer for layer in range(model.n_layers) if layer not in model.without_heads)
    reader = model.mlp_reader(first)
    if reader is None:
        assert name == "Nemotron-H"
        return
    given: list[torch.Tensor] = []
    watch = reader.register_forward_pre_hook(lambda _m, args: given.append(args[0].clone()))
    with torch.no_grad():
        model.module(input_ids=IDS, use_cache=False)
        double = model.projections[first].register_forward_pre_hook(lambda _m, args: (2 * args[0],))
        model.module(input_ids=IDS, use_cache=False)
    watch.remove()
    double.remove()
    assert torch.equal(*given) == model.parallel_attn_mlp == (name in PARALLEL)


def test_patching_and_direct_attribution_hold_for_every_family(family: tuple[str, Model]) -> None:
    name, model = family
    tokens = token_pairs()
    with warnings.catch_warnings():
        if name in ("BLOOM", "MPT", "Falcon-H1", "Zaya") or model.final_norm is None or model.without_heads:
            # Layers given a bias for the rows at hand, no final norm (OPT-350m), a state in place of keys and values:
            # the walk says that it cannot be.
            warnings.simplefilter("ignore", HeadcodesWarning)
        walked = causal_truth(model, made_pairs.flipped(model, tokens), cache=False, progress=False)
    whole = causal_truth(
        model, made_pairs.flipped(model, tokens), cache=False, progress=False, compute=Compute("forward")
    )
    np.testing.assert_allclose(walked.effects, whole.effects, atol=1e-4, rtol=1e-3)
    if model.facts.stream is None:
        assert np.isfinite(dla.find("dla", Inputs(model, tokens), "node", 0).head_scores).all()
    else:
        with pytest.raises(HeadcodesError, match=NO_EDGES[name]):
            dla.find("dla", Inputs(model, tokens), "node", 0)


def test_docs_list_what_every_family_is_found_to_do() -> None:
    """Made anew by ``python tests/tiny_families.py``."""
    if not all(map(known, [*ROWS, *FURTHER, *REFUSED])):
        pytest.skip("the installed transformers does not know every family")
    for name, (_, _, reason) in REFUSED.items():
        with pytest.raises(HeadcodesError, match=reason):
            load_model(make(name))
    assert table() in (Path(__file__).parents[3] / "docs" / "models.md").read_text()


# TransformerLens 4.3 opens none of these.
UNKNOWN_TO_TRANSFORMER_LENS = {"CodeGen", "OPT, norms behind", "Falcon, grouped", "Gemma 4, widths by layer", *HYBRIDS}


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
        for layer, z in results(ours, IDS[0].tolist()).items():
            expected = cache[f"blocks.{layer}.attn.hook_z"].reshape(z.shape)
            torch.testing.assert_close(z, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.W_O, theirs.W_O, atol=1e-6, rtol=1e-5)
    assert ours.parallel_attn_mlp == bool(theirs.cfg.parallel_attn_mlp)


def test_layers_without_heads_are_named_and_score_nothing(tiny_tokenizer: Any) -> None:
    """A hybrid keeps its layers' numbers; no method says anything of heads that are not there."""
    from headcodes import discover, tasks
    from headcodes.cli.table import table as printed
    from headcodes.methods import METHODS

    if not known("LFM2"):
        pytest.skip("the installed transformers does not know LFM2")
    model = load_model(make("LFM2", vocab_size=len(tiny_tokenizer)), tokenizer=tiny_tokenizer)
    assert model.without_heads == (0, 2)
    pairs = tasks.get("ioi").build(tiny_tokenizer, n=6, seed=0)
    for method in ("random", "sp", "paper", "contrast", "attribution", "hisp", "dla", "acdc"):
        assert method in METHODS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HeadcodesWarning)
            found = discover(model, pairs, method=method, verify=None)
        assert not found.head_scores[[0, 2]].any(), method
        assert found.head_scores[[1, 3]].any(), method
        assert {layer for layer, _ in found.circuit(8).heads} <= {1, 3}, method
    assert found.as_json()["layers_without_heads"] == [0, 2]
    assert "no attention heads in layers 0, 2: run, and left out" in printed(found, 5)


def test_the_check_costs_two_short_passes_once(tmp_path: Path, tiny_tokenizer: Any, monkeypatch: Any) -> None:
    """A prompt of a task has more tokens than it; the second time nothing is run."""
    hf = make("Llama")
    hf.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("HEADCODES_CACHE", str(tmp_path / "cache"))
    passes: list[int] = []
    trace = Model.trace

    def counted(self: Model, tokens: torch.Tensor, **kwargs: Any) -> Any:
        passes.append(tokens.numel())
        return trace(self, tokens, **kwargs)

    monkeypatch.setattr(Model, "trace", counted)
    first = load_model(tmp_path / "model").facts
    assert len(passes) == 2
    assert sum(passes) <= 49
    assert load_model(tmp_path / "model").facts == first
    assert len(passes) == 2


@pytest.mark.parametrize("name", ["Gemma 4, widths by layer", "LFM2", "CodeGen"])
def test_a_folder_of_the_family_opens(name: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    if not known(name):
        pytest.skip(f"the installed transformers does not know {name}")
    hf = make(name)
    hf.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    torch.testing.assert_close(load_model(tmp_path, dtype="float32").W_O, load_model(hf).W_O, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["CodeGen", "Falcon, grouped"])
def test_queries_keys_and_values_lie_where_the_family_itself_takes_them_from(name: str) -> None:
    """A sum over heads does not see which head an edge was given to; the families' own ways of splitting do."""
    model = load_model(make(name))
    module, _ = slot_projection(model, 0, "q")
    out = torch.randn(2, 3, module.out_features)
    attention: Any = model.attention(0)
    if name == "CodeGen":
        n_shards = getattr(attention, "mp_num", 4)  # a number in the code of older versions of transformers
        query, value, key = out.view(2, 3, n_shards, -1).split(attention.embed_dim // n_shards, -1)
        expected = {"q": query, "k": key, "v": value}
        expected = {slot: part.reshape(2, 3, 4, 8) for slot, part in expected.items()}
    else:
        grouped = out.view(2, 3, 2, 4, 8)
        expected = {"q": grouped[..., :2, :].flatten(2, 3), "k": grouped[..., 2, :], "v": grouped[..., 3, :]}
        own = attention._split_heads(out)
        for slot, part in zip("qkv", own, strict=True):
            theirs = expected[slot] if slot == "q" else expected[slot].repeat_interleave(2, 2)
            torch.testing.assert_close(part.reshape(2, 3, 4, 8), theirs, atol=0, rtol=0)
    for slot, part in expected.items():
        cut = slot_projection(model, 0, slot)[1]
        assert torch.equal(cut(out), part)
        changed = out.clone()
        cut.put(changed, part + 1)
        assert torch.equal(cut(changed), part + 1)
        assert int((changed != out).sum()) == part.numel()
