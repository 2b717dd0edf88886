"""Attention patterns of a few heads on a few prompts: which tokens each token of a prompt attends to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.errors import HeadcodesError
from headcodes.files import atomic_write, regular

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from headcodes.models.model import Model
    from headcodes.prompts.pairs import PromptPairs

_FILE = "attention.safetensors"
# A picture of more tokens than this cannot be read.
MOST_TOKENS = 96


@dataclass(frozen=True)
class AttentionPattern:
    """Attention of some heads on one prompt.

    Attributes:
        side: "clean" or "corrupt".
        index: which pair.
        tokens: the prompt's tokens as text, one a position.
        heads: (layer, head), one a pattern.
        patterns: [n_head, seq, seq] in [0, 1]; rows are where attention comes from, and sum to 1.
    """

    side: str
    index: int
    tokens: tuple[str, ...]
    heads: tuple[tuple[int, int], ...]
    patterns: Float[np.ndarray, "n_head seq seq"]


def attention_examples(
    model: Model, pairs: PromptPairs, heads: Sequence[tuple[int, int]], bos: str = "auto", n_pairs: int = 2
) -> list[AttentionPattern]:
    """Return the attention of ``heads`` on both sides of the first pairs of at most ``MOST_TOKENS`` tokens.

    An empty list where no prompt is that short, or there are no heads.

    Raises:
        HeadcodesError: the model gives no attention weights.
    """
    from headcodes.prompts.tokens import tokenize

    tokens = tokenize(pairs, model.tokenizer, bos, warn=False)
    heads = tuple(heads)
    sides = {"clean": tokens.clean, "corrupt": tokens.corrupt}
    short = [i for i in range(len(pairs)) if all(len(ids[i]) <= MOST_TOKENS for ids in sides.values())][:n_pairs]
    if not heads:
        return []
    where = [(side, index) for index in short for side in sides]
    patterns = attention_patterns(model, [sides[side][index] for side, index in where], heads)
    return [
        AttentionPattern(side, index, tuple(model.tokenizer.decode([i]) for i in sides[side][index]), heads, its)
        for (side, index), its in zip(where, patterns, strict=True)
    ]


def attention_patterns(
    model: Model, token_ids: Sequence[Sequence[int]], heads: Sequence[tuple[int, int]]
) -> list[Float[np.ndarray, "n_head seq seq"]]:
    """Return the attention of ``heads`` on every prompt, float32, prompts run one at a time.

    A model of transformers attends eagerly for the time of this call (the fast ways keep no weights) and is then put
    back to its own way.

    Raises:
        HeadcodesError: the model gives no attention weights.
    """
    import torch

    from headcodes.models.relied import attending_eagerly

    found: list[np.ndarray] = []
    with torch.inference_mode(), attending_eagerly(model):
        for ids in token_ids:
            tokens = torch.tensor([list(ids)], device=model.device)
            weights = _weights(model, tokens, sorted({layer for layer, _ in heads}))
            found.append(np.stack([weights[layer][0, head].float().cpu().numpy() for layer, head in heads]))
    return found


def _weights(model: Model, tokens: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """Return the attention weights [1, n_heads, seq, seq] of some layers."""
    module: Any = model.module
    if model.family == "transformer-lens":
        names = {f"blocks.{layer}.attn.hook_pattern": layer for layer in layers}
        _, cache = module.run_with_cache(tokens, names_filter=list(names))
        return {layer: cache[name] for name, layer in names.items()}
    weights: dict[int, Tensor] = {}

    def keep(layer: int, output: Any) -> None:
        if isinstance(output, tuple) and len(output) > 1 and getattr(output[1], "ndim", 0) == 4:
            weights[layer] = output[1]

    # Our own hooks and not output_attentions=True, which leaves transformers' hooks behind in the model.
    hooks = [
        model.attention(layer).register_forward_hook(lambda _m, _in, output, layer=layer: keep(layer, output))
        for layer in layers
    ]
    try:
        model.trace(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    if len(weights) < len(layers):
        raise HeadcodesError(
            "attention modules must return their weights for attention patterns",
            f"none from {model.name}",
            "Save the result without the model: everything else is shown.",
        )
    return weights


def save_attention(folder: Path, examples: Sequence[AttentionPattern]) -> None:
    """Write attention.safetensors into ``folder``: patterns as uint8 (255 is 1), the rest as JSON in its metadata.

    No examples, no file: one that an earlier run left there would belong to other heads, and goes.
    """
    from safetensors.numpy import save_file

    if not examples:
        (folder / _FILE).unlink(missing_ok=True)
        return

    about = [{"side": e.side, "index": e.index, "tokens": e.tokens, "heads": e.heads} for e in examples]
    with atomic_write(folder / _FILE) as path:
        save_file(
            {str(i): np.rint(example.patterns * 255).astype(np.uint8) for i, example in enumerate(examples)},
            path,
            metadata={"examples": json.dumps(about)},
        )


def load_attention(folder: Path) -> list[AttentionPattern]:
    """Read what ``save_attention`` wrote; an empty list where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    from safetensors import safe_open

    path = folder / _FILE
    if not path.exists():
        return []
    with safe_open(regular(path), framework="numpy") as file:
        about = json.loads((file.metadata() or {}).get("examples", "[]"))
        examples = []
        for i, entry in enumerate(about):
            patterns = file.get_tensor(str(i)).astype(np.float32) / 255
            tokens = tuple(str(token) for token in entry["tokens"])
            heads = tuple((int(layer), int(head)) for layer, head in entry["heads"])
            if patterns.shape != (len(heads), len(tokens), len(tokens)):
                raise ValueError(f"pattern {i} of {path} has shape {patterns.shape}")
            examples.append(AttentionPattern(str(entry["side"]), int(entry["index"]), tokens, heads, patterns))
    return examples
