"""A transformer as a sum of parts, one prompt and one part at a time, in which any edge of its graph can be cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headcodes.models.model import Model


class SpelledOut:
    """A model, and the family that says what its parts are called."""

    def __init__(self, model: Model, family: str) -> None:
        self.model, self.family = model, family

    def parts(self, layer: int) -> tuple[Any, Any, Any]:
        block: Any = self.model.layers[layer]
        if self.family == "gpt2":
            return block.ln_1, block.ln_2, block.mlp
        if self.family == "opt":
            return (
                block.self_attn_layer_norm,
                block.final_layer_norm,
                lambda x: block.fc2(block.activation_fn(block.fc1(x))),
            )
        if self.family == "transformer-lens":  # attention only
            return block.ln1, None, None
        return block.input_layernorm, block.post_attention_layernorm, block.mlp

    def slot(self, layer: int, head: int, slot: str, x: Tensor) -> Tensor:
        attention: Any = self.model.attention(layer)
        d, place = self.model.d_head, "qkv".index(slot)
        if self.family == "gpt2":
            return attention.c_attn(x).split(self.model.d_model, -1)[place][:, head * d : (head + 1) * d]
        if self.family == "opt":
            return getattr(attention, f"{slot}_proj")(x)[:, head * d : (head + 1) * d]
        if self.family in ("llama", "qwen2", "qwen3"):
            own = head if slot == "q" else head * self.model.n_kv_heads // self.model.n_heads
            values = getattr(attention, f"{slot}_proj")(x)[:, own * d : (own + 1) * d]
            return getattr(attention, f"{slot}_norm")(values) if self.family == "qwen3" and slot != "v" else values
        if self.family == "transformer-lens":
            return getattr(attention, slot)(x)[:, head * d : (head + 1) * d]
        return attention.query_key_value(x).view(len(x), -1, 3, d)[:, head, place]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, d = q.shape
        if self.family == "gpt_neox":
            from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

            body: Any = self.model.module
            cos, sin = body.gpt_neox.rotary_emb(q, torch.arange(n)[None])
            q, k = (part[0, 0] for part in apply_rotary_pos_emb(q[None, None], k[None, None], cos, sin))
        if self.family in ("llama", "qwen2", "qwen3"):
            from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as turned

            inner: Any = self.model.module
            cos, sin = inner.model.rotary_emb(q, torch.arange(n)[None])
            q, k = (part[0, 0] for part in turned(q[None, None], k[None, None], cos, sin))
        scores = q @ k.T / d**0.5
        return scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1) @ v

    def embedded(self, ids: list[int]) -> Tensor:
        kept: list[Tensor] = []
        first = self.model.layers[0]
        handle = first.register_forward_pre_hook(
            lambda _m, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        self.model.trace(torch.tensor([ids]))
        handle.remove()
        return kept[0][0]

    def run(self, ids: list[int], other: dict[str, Tensor], gone: set[tuple[str, str]]) -> tuple[Tensor, dict]:
        """Logits at the end, and what every source said, when ``gone`` edges carry ``other``'s values."""
        model = self.model
        said = {"input": self.embedded(ids)}
        bias = torch.zeros(model.d_model)  # of projections: everyone's, nobody's
        parallel = model.parallel_attn_mlp

        def read(node: str, sources: list[str]) -> Tensor:
            return bias + sum(other[s] if (s, node) in gone else said[s] for s in sources)  # type: ignore[no-any-return]

        with torch.no_grad():
            for layer in range(model.n_layers):
                before = list(said)
                norm, mlp_norm, mlp = self.parts(layer)
                for head in range(model.n_heads):
                    name = f"a{layer}.h{head}"
                    q, k, v = (self.slot(layer, head, slot, norm(read(f"{name}<{slot}>", before))) for slot in "qkv")
                    said[name] = self.attend(layer, q, k, v) @ model.W_O[layer, head]
                own_bias: Any = model.projections[layer].bias
                own_bias = 0 if own_bias is None else own_bias
                if not parallel:
                    bias = bias + own_bias
                if mlp is not None:
                    said[f"m{layer}"] = mlp(mlp_norm(read(f"m{layer}", before if parallel else list(said))))
                if parallel:
                    bias = bias + own_bias
            final: Any = model.final_norm
            return model.unembed(final(read("logits", list(said)))[-1]), said
