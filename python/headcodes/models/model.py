"""A language model laid open: its heads, how to run it, how to listen in, and nothing changed in it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.models.families import FAMILIES, resolve_path
from headcodes.models.weights import is_bridge, is_conv1d, weights_of, weights_present

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Model:
    """A causal language model with its attention heads laid open. Nothing in it is changed, ever.

    Attributes:
        name: what it was loaded by. revision: the hub's revision, or None. family: its configuration's model_type, or
            "transformer-lens".
        module: the model of transformers, or the TransformerBridge. tokenizer: its tokenizer, or None.
        n_layers, n_heads (query heads), n_kv_heads, d_head, d_model, d_vocab: sizes.
        layers: its decoder blocks. projections: each layer's attention output projection, which maps
            [..., n_heads * d_head] to [..., d_model]. final_norm, unembed: the parts behind the last block.
        parallel_attn_mlp: whether attention and MLP of a layer read the same input.
    """

    def __init__(
        self,
        *,
        name: str,
        family: str,
        module: nn.Module,
        tokenizer: Any,
        layers: list[nn.Module],
        projections: list[nn.Module],
        attention: str,
        mlp: str | None,
        final_norm: nn.Module | None,
        unembed: nn.Module,
        n_heads: int,
        n_kv_heads: int,
        parallel_attn_mlp: bool = False,
        revision: str | None = None,
        known_checksum: str | None = None,
    ) -> None:
        self.name = name
        self.revision = revision
        self.family = family
        self.module = module
        self.tokenizer = tokenizer
        self.layers = layers
        self.projections = projections
        self.final_norm = final_norm
        self.unembed = unembed
        self.n_layers = len(layers)
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.parallel_attn_mlp = parallel_attn_mlp
        self._attention = attention
        self._mlp = mlp
        self._checksum = known_checksum
        first = weights_of(projections[0])
        n_in, self.d_model = first.weight.shape if is_conv1d(first) else first.weight.shape[::-1]
        if n_in % n_heads:
            raise HeadcodesError(
                "The projection's input must hold the heads side by side",
                f"a width of {n_in} for {n_heads} heads",
                "Check projection= and the model's configuration.",
            )
        self.d_head = n_in // n_heads
        self.d_vocab = int(weights_of(unembed).weight.shape[0])

    def __repr__(self) -> str:
        sizes = f"{self.n_layers} layers x {self.n_heads} heads x {self.d_head}, d_model={self.d_model}"
        return f"Model({self.name!r}, {self.family}, {sizes}, {self.dtype}, {self.device})"

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        weight: Tensor = weights_of(self.projections[0]).weight
        return weight.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go; with ``device_map``, the device of the first layer."""
        for tensor in self.module.parameters():
            if tensor.device.type != "meta":
                return tensor.device
        return torch.device("cpu")

    @property
    def n_components(self) -> int:
        """Number of heads in all layers."""
        return self.n_layers * self.n_heads

    @property
    def components(self) -> list[str]:
        """The heads' names, layer by layer: ``a{layer}.h{head}``."""
        return [f"a{layer}.h{head}" for layer in range(self.n_layers) for head in range(self.n_heads)]

    @cached_property
    def W_O(self) -> Float[Tensor, "n_layers n_heads d_head d_model"]:
        """Every head's output weights, in the weights' dtype, on ``device``.

        The weights of layer l's projection, cut by query head: ``z[l, h] @ W_O[l, h]``, summed over h, plus the
        projection's bias, is the projection's output. Grouped-query attention shares keys and values, not these.
        """
        # A plain tensor wherever it is first asked for: one made in inference mode could never meet autograd.
        with torch.inference_mode(False), torch.no_grad():
            weights = torch.empty(
                self.n_layers, self.n_heads * self.d_head, self.d_model, dtype=self.dtype, device=self.device
            )
            for layer, module in enumerate(self.projections):
                with weights_present(weights_of(module)) as linear:
                    weights[layer] = linear.weight if is_conv1d(linear) else linear.weight.T
        return weights.view(self.n_layers, self.n_heads, self.d_head, self.d_model)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 that identifies weights and configuration.

        From the source's own checksum where there is one; for a model given in memory, over all its weights, which
        takes about a second a gigabyte and is worked out on first use.
        """
        if self._checksum is not None:
            return self._checksum
        digest = hashlib.sha256()
        config: Any = getattr(self.module, "config", None)
        digest.update(
            json.dumps(config.to_dict() if hasattr(config, "to_dict") else {}, sort_keys=True, default=str).encode()
        )
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def longest_shared(self) -> int:
        """Longest prompt that may share a row with others behind a mask of its own; 0 where no row may be shared.

        Known for the families of the table, whose attention takes a mask per query; a window that slides over the row
        would not know which tokens belong together, so prompts must fit into it.
        """
        config: Any = getattr(self.module, "config", None)
        if self.family not in FAMILIES or is_bridge(self.module):
            return 0
        if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
            return 0
        return int(getattr(config.get_text_config(), "sliding_window", None) or sys.maxsize)

    def attention(self, layer: int) -> nn.Module:
        """Return a layer's attention module. Its query, key and value projections may be fused (GPT-2, GPT-NeoX)."""
        return resolve_path(self.layers[layer], self._attention)

    def mlp(self, layer: int) -> nn.Module | None:
        """Return the module whose output is a layer's MLP output (before any norm that follows), or None."""
        return None if self._mlp is None else resolve_path(self.layers[layer], self._mlp)

    def trace(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        attention_mask: Int[Tensor, "batch seq"] | None = None,
        logits_at: Int[Tensor, " batch"] | Int[Tensor, "n 2"] | None = None,
        vocab: Int[Tensor, " n_vocab"] | None = None,
        **inputs: Any,
    ) -> Float[Tensor, "n n_vocab"] | None:
        """Run the model over token ids; whoever wants to see something inside hangs a hook in first.

        Nothing is cached and no logits are computed but those asked for. Gradients flow unless the caller forbids
        them. Rows shorter than ``seq`` need no mask when filled up on the right: no token sees one after it.

        Args:
            tokens: on any device; moved to ``device``.
            attention_mask: as transformers takes it, if there must be one.
            logits_at: a position for each row, or any number of (row, position) [n, 2]: the fp32 logits there are
                returned; None: none are computed.
            vocab: the token ids whose logits are wanted, in this order; all of them by default. These few are
                computed in fp32 from the last hidden state, so that bf16 models do not round differences away.
            inputs: more keyword arguments for the model, such as position_ids.
        """
        if "position_ids" not in inputs:
            self.check_length(tokens.shape[1])
        tokens = tokens.to(self.device)
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask.to(self.device)
        bridge = is_bridge(self.module)
        if not bridge:
            inputs["use_cache"] = False
            if logits_at is None:
                body: Any = self.module.base_model
                body(input_ids=tokens, **inputs)
                return None
        at = torch.zeros(len(tokens), dtype=torch.long) if logits_at is None else logits_at.cpu()
        if at.ndim == 1:
            at = torch.stack([torch.arange(len(tokens)), at], dim=1)
        with _logits_only(self.unembed, at, vocab):
            output = (
                self.module(tokens, return_type="logits", **inputs)
                if bridge
                else self.module(input_ids=tokens, **inputs)
            )
        if logits_at is None:
            return None
        logits: Tensor = (output if bridge else output.logits)[:, 0]
        if vocab is not None and logits.shape[1] != len(vocab):
            logits = logits[:, vocab.to(logits.device)]
        return logits.float()

    @cached_property
    def n_positions(self) -> int | None:
        """How many positions the model has a learned vector for; None where positions are turned or reckoned."""
        inner: Any = getattr(self.module, "original_model", self.module)
        config = getattr(inner, "config", None)
        limit = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
        words = inner.get_input_embeddings() if isinstance(limit, int) else None
        tables = (part for part in inner.modules() if isinstance(part, nn.Embedding) and part is not words)
        # OPT's table has two rows more than it has positions.
        return limit if limit and any(part.num_embeddings in (limit, limit + 2) for part in tables) else None

    def check_length(self, n_tokens: int) -> None:
        """Refuse a prompt longer than the model's table of positions.

        Raises:
            HeadcodesError: it is.
        """
        if self.n_positions is not None and n_tokens > self.n_positions:
            raise HeadcodesError(
                f"a prompt must have at most {self.n_positions} tokens, as {self.name} has learned positions",
                f"one of {n_tokens} tokens",
                "Shorten it, or leave it out.",
            )


@contextmanager
def _logits_only(unembed: nn.Module, at: Tensor, vocab: Tensor | None) -> Iterator[None]:
    """Let the model unembed only the (row, position)s ``at``, and only ``vocab``; a soft cap behind still applies."""

    def shrink(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        rows, positions = at.to(hidden.device).unbind(1)
        return (hidden[rows, positions][:, None], *args[1:])

    def replace(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        linear = weights_of(module)
        weight = linear.weight
        # Offloaded weights have left again by now; then the model's own logits are cut afterwards.
        if vocab is None or weight.is_meta:
            return None
        ids = vocab.to(weight.device)
        bias = getattr(linear, "bias", None)
        chosen = None if bias is None else bias[ids].float()
        # Tied to the embedding, the weights may lie on another device than the last block.
        hidden = args[0].to(weight.device).float()
        return torch.nn.functional.linear(hidden, weight[ids].float(), chosen)

    with ExitStack() as hooks:
        hooks.callback(unembed.register_forward_pre_hook(shrink).remove)
        if vocab is not None:
            hooks.callback(unembed.register_forward_hook(replace).remove)
        yield
