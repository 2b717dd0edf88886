"""relp and AtP*: exact where the model is what they take it for; each restated by hand, one head at a time."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.methods.test_method_eap import FAMILIES, linear_gpt2, token_pairs
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from headcodes.errors import HeadcodesError
from headcodes.interventions.engine import Compute
from headcodes.interventions.patch import causal_truth
from headcodes.interventions.runs import batches, ready, run
from headcodes.methods import METHODS, get
from headcodes.methods.inputs import Inputs
from headcodes.methods.relp import rules
from headcodes.models.hooks import edit_output
from headcodes.models.load import load_model
from headcodes.models.model import Model
from headcodes.prompts.tokens import TokenPairs

RIVALS = ("relp", "relp-ah", "atp-qk", "atp-star")


def answered(model: Model, tokens: TokenPairs) -> TokenPairs:
    """Exchange answers where the model has them the other way round: patching looks at answered pairs only."""
    for i, prompt in enumerate(tokens.clean):
        logits = model.module(input_ids=torch.tensor([prompt])).logits[0, -1]
        if logits[tokens.answers[i]].logsumexp(0) < logits[tokens.wrong_answers[i]].logsumexp(0):
            tokens.answers[i], tokens.wrong_answers[i] = tokens.wrong_answers[i], tokens.answers[i]
    return tokens


@pytest.mark.parametrize("name", ["relp", "relp-ah"])
def test_relp_on_a_linear_model_is_exact_patching(tiny_model: Any, name: str) -> None:
    model = linear_gpt2(tiny_model)
    tokens = answered(model, token_pairs(n_right=(1,), n_wrong=(1,)))
    truth = causal_truth(model, tokens, cache=False, compute=Compute("forward"), progress=False)
    found = get(name).find(Inputs(model, tokens))
    np.testing.assert_allclose(found.signed, truth.head_effects, atol=2e-5, rtol=1e-4)


def attended(model: Any, block: Any, read: Tensor) -> Tensor:
    """The z [seq, head, d_head] of a tiny Llama's attention, from what it reads [seq, d_model]: by hand."""
    attention = block.self_attn
    q, k, v = (
        part(read).unflatten(-1, (-1, 8)).transpose(0, 1)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = apply_rotary_pos_emb(q[None], k[None], *model.rotary_emb(read, torch.arange(len(read))[None]))
    scores = q[0] @ k[0].repeat_interleave(2, 0).transpose(1, 2) / 8**0.5
    later = torch.ones(len(read), len(read), dtype=torch.bool).triu(1)
    return (scores.masked_fill(later, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 0)).transpose(0, 1)


def frozen_effect(
    name: str, model: Model, prompt: list[int], layer: int, change: Tensor, right: int, wrong: int
) -> float:
    """What a change of z [seq, head, d_head] in a layer of a tiny Llama makes of the logit difference, forward, in the
    model whose norms' scales and activations' slopes are those of the prompt, gates halved: by hand. Attention has the
    prompt's patterns (relp-ah) or its derivative there (relp)."""
    module: Any = model.module
    module.set_attn_implementation("eager")
    seen: dict[Any, Tensor] = {}
    with ExitStack() as hooks:
        for part in module.modules():

            def note(part: Any, args: Any, output: Any) -> None:
                if isinstance(output, Tensor) and args:
                    seen[part, "in"], seen[part, "out"] = args[0][0], output[0]

            hooks.callback(part.register_forward_hook(note).remove)
        patterns = module(input_ids=torch.tensor([prompt]), output_attentions=True).attentions

    def scaled(norm: Any, d: Tensor) -> Tensor:
        x = seen[norm, "in"]
        return d * norm.weight / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()

    blocks = module.model.layers
    delta = torch.zeros(len(prompt), model.d_model)
    for number, block in enumerate(blocks):
        if number == layer:
            delta = delta + change.flatten(1) @ block.self_attn.o_proj.weight.T
        elif number > layer:
            read = scaled(block.input_layernorm, delta)
            values = (read @ block.self_attn.v_proj.weight.T).unflatten(-1, (2, -1))
            z = torch.stack([patterns[number][0, head] @ values[:, head // 2] for head in range(4)], 1)
            if name == "relp":
                of = partial(attended, module.model, block)
                z = torch.func.jvp(of, (seen[block.input_layernorm, "out"],), (read,))[1]
            delta = delta + z.flatten(1) @ block.self_attn.o_proj.weight.T
        if number >= layer:
            read = scaled(block.post_attention_layernorm, delta)
            gate, up = seen[block.mlp.gate_proj, "out"], seen[block.mlp.up_proj, "out"]
            slope = nn.functional.silu(gate) / gate
            d_gate, d_up = read @ block.mlp.gate_proj.weight.T, read @ block.mlp.up_proj.weight.T
            half = (slope * d_gate * up + slope * gate * d_up) / 2
            delta = delta + half @ block.mlp.down_proj.weight.T
    logits = scaled(module.model.norm, delta)[-1] @ module.lm_head.weight.T
    return float(logits[right] - logits[wrong])


@pytest.mark.parametrize("name", ["relp", "relp-ah"])
def test_relp_is_the_effect_in_the_frozen_model(tiny_model: Any, name: str) -> None:
    model, tokens = tiny_model("llama"), token_pairs(n=2, n_right=(1,), n_wrong=(1,))
    found = get(name).find(Inputs(model, tokens))
    assert found.signed is not None
    expected = np.zeros((3, 4))
    with torch.no_grad():
        for i in range(2):
            (batch,) = batches(tokens.subset([i]), 1, 1 << 30)
            with ready(model):
                clean, corrupt = run(model, batch.clean, batch), run(model, batch.corrupt, batch)
            for layer in range(3):
                difference = (clean.z[layer] - corrupt.z[layer])[0].unflatten(-1, (4, -1))
                for head in range(4):
                    change = torch.zeros_like(difference)
                    change[:, head] = difference[:, head]
                    right, wrong = tokens.answers[i][0], tokens.wrong_answers[i][0]
                    effect = frozen_effect(name, model, tokens.clean[i], layer, change, right, wrong)
                    expected[layer, head] += effect / 2
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found.signed, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_change_no_value_and_leave_nothing(tiny_model: Any, family: str) -> None:
    model: Model = tiny_model(family)
    tokens = token_pairs(n=1)
    (batch,) = batches(tokens, 1, 1 << 30)
    with ready(model):
        plain = run(model, batch.clean, batch)
        with rules(model, tokens.clean[0], attention=True):
            ruled = run(model, batch.clean, batch)
    assert torch.equal(plain.logits, ruled.logits)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())
    gradients = [torch.autograd.grad(each.logits.sum(), each.z[0])[0] for each in (plain, ruled)]
    assert not torch.allclose(*gradients)


def test_relp_knows_norms_without_weights() -> None:
    from tiny_families import make

    model = load_model(make("OLMo"), tokenizer=None)
    assert get("relp").find(Inputs(model, token_pairs(n_vocab=97))).head_scores.all()


def test_relp_refuses_mlps_that_it_has_no_rule_for() -> None:
    from tiny_families import known, make

    if not known("Mixtral"):
        pytest.skip("this transformers has no Mixtral")
    model = load_model(make("Mixtral"), tokenizer=None)
    with pytest.raises(HeadcodesError, match="relp must know an MLP's activation"):
        get("relp").find(Inputs(model, token_pairs(n_vocab=97)))


def patched_by_hand(model: Model, family: str, tokens: TokenPairs, i: int) -> np.ndarray:
    """Logit difference lost, by slot and head, when a last-layer head's own queries, keys or values are the corrupted
    prompt's, and no other head sees it: each by a run of its own."""
    attention: Any = model.attention(2)
    clean, corrupt = tokens.clean[i], tokens.corrupt[i]

    def answer(ids: list[int]) -> float:
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([ids])).logits[0, -1]
        return float(logits[tokens.answers[i][0]] - logits[tokens.wrong_answers[i][0]])

    def seen(part: nn.Module, ids: list[int], *edits: Any) -> Tensor:
        kept: list[Tensor] = []
        with ExitStack() as hooks:
            for module, edit in edits:
                hooks.enter_context(edit_output(module, edit))
            hooks.callback(part.register_forward_pre_hook(lambda _m, args: kept.append(args[0].clone())).remove)
            answer(ids)
        return kept[0]

    lost = np.zeros((3, 4))
    for place, slot in enumerate("qkv"):
        fused = family == "gpt2"
        module = attention.c_attn if fused else getattr(attention, f"{slot}_proj")
        theirs = module(seen(module, corrupt))
        for head in range(4):
            first = 32 * place + 8 * head if fused else 8 * (head if slot == "q" else head // 2)

            def put(y: Tensor, first: int = first, theirs: Tensor = theirs) -> Tensor:
                return torch.cat([y[..., :first], theirs[..., first : first + 8], y[..., first + 8 :]], -1)

            z = seen(model.projections[2], clean, (module, put))

            def only(_m: Any, args: Any, head: int = head, z: Tensor = z) -> Any:
                own = slice(8 * head, 8 * head + 8)
                mixed = args[0].clone()
                mixed[..., own] = z[..., own]
                return (mixed,)

            hook = model.projections[2].register_forward_pre_hook(only)
            lost[place, head] = -answer(clean)
            hook.remove()
            lost[place, head] += answer(clean)
    return lost


@pytest.mark.parametrize("sharp", [1.0, 60.0])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_queries_and_keys_of_the_last_layer_are_patched_exactly(tiny_model: Any, family: str, sharp: float) -> None:
    """Behind the last attention everything is linear here; in it attention may be saturated, its derivative useless."""
    model: Model = tiny_model(family)
    last, body = model.layers[-1], getattr(model.module, "transformer", None) or getattr(model.module, "model", None)
    fused = family == "gpt2"
    with torch.no_grad():
        (last.mlp.c_proj if fused else last.mlp.down_proj).weight.zero_()  # type: ignore[union-attr]
        (last.attn.c_attn.weight[:, :32] if fused else last.self_attn.q_proj.weight).mul_(sharp)  # type: ignore[union-attr, index, operator]
    setattr(body, "ln_f" if fused else "norm", nn.Identity())
    model.final_norm = nn.Identity()
    tokens = token_pairs(n_right=(1,), n_wrong=(1,))
    with torch.no_grad():
        lost = np.mean([patched_by_hand(model, family, tokens, i) for i in range(4)], 0)
    found = get("atp-qk").find(Inputs(model, tokens))
    assert found.signed is not None
    assert np.abs(lost[:2]).max() > 1e-2
    np.testing.assert_allclose(found.signed[2], lost.sum(0), atol=5e-5, rtol=1e-3)
    np.testing.assert_allclose(found.head_scores[2], np.abs(lost).sum(0), atol=5e-5, rtol=1e-3)


def test_values_are_what_attribution_patching_makes_of_them(tiny_model: Any) -> None:
    """With queries and keys that no prompt changes, what is left is linear in z: EAP's own scores."""
    model = linear_gpt2(tiny_model)
    tokens = token_pairs()
    eap, atp = (get(name).find(Inputs(model, tokens)) for name in ("eap", "atp-qk"))
    np.testing.assert_allclose(atp.signed, eap.signed, atol=1e-5, rtol=1e-4)


def test_grad_drop_is_the_mean_over_models_that_each_pass_nothing_back_through_a_layer(tiny_model: Any) -> None:
    from headcodes.methods.atp_star import patched_results

    model, tokens = tiny_model("llama"), token_pairs(n=3)
    expected = np.zeros((3, 3, 4))
    for i in range(3):
        (batch,) = batches(tokens.subset([i]), 1, 1 << 30)
        with ready(model):
            patched = patched_results(model, batch)
            for dropped in range(3):
                with ExitStack() as hooks:
                    block = model.layers[dropped]
                    for part in (model.projections[dropped], block.mlp):
                        hooks.enter_context(edit_output(part, torch.Tensor.detach))  # type: ignore[arg-type]
                    clean = run(model, batch.clean, batch)
                    loss = batch.logit_diff(clean.logits).sum()
                    gradients = torch.autograd.grad(loss, clean.z, allow_unused=True)
                assert gradients[dropped] is None
                for layer in {0, 1, 2} - {dropped}:
                    difference = (clean.z[layer].detach() - patched[layer]) * gradients[layer]
                    effect = difference.unflatten(-1, (4, -1)).sum((1, 2, 4))  # [slot, head]
                    expected[:, layer] += effect.abs().numpy() / 2 / 3
    found = get("atp-star").find(Inputs(model, tokens))
    assert found.signed is None
    np.testing.assert_allclose(found.head_scores, expected.sum(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_say_what_they_need(tiny_model: Any, name: str) -> None:
    model, tokens = tiny_model("gpt2"), token_pairs()
    tokens.corrupt[1] = [*tokens.corrupt[1], 5]
    with pytest.raises(HeadcodesError, match=f"{name} compares the two prompts"):
        get(name).find(Inputs(model, tokens))
    with pytest.raises(HeadcodesError, match=f"{name} takes its gradient at the clean run"):
        get(name).find(Inputs(model, token_pairs(), metric="kl"))
    assert METHODS[name].levels == ("node",)
