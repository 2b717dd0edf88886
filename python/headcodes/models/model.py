"""A language model: its heads, how to run it, how to hook into it. Nothing in it is changed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.models.facts import Facts
from headcodes.models.families import resolve_path
from headcodes.models.hooks import NoHeads, first_of
from headcodes.models.relied import attention_way, body_of
from headcodes.models.weights import is_bridge, logits_only, matrix_of, weights_of, widths

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class Model:
    """A causal language model and access to its attention heads. Nothing in it is ever changed.

    Attributes:
        name: what it was loaded by. revision: the hub's revision, or None. projection: the path
            of its output projections, if it had to be told. family: its configuration's model_type, or
            "transformer-lens".
        module: the model of transformers, or the TransformerBridge. tokenizer: its tokenizer, or None.
        n_layers, n_heads (query heads), n_kv_heads, d_model, d_vocab: sizes. d_heads: the width of a head's result in
            each layer; d_head: the largest of them (they differ in Gemma 4 only).
        layers: its decoder blocks. projections: each layer's attention output projection, which maps
            [..., n_heads * d_head] to [..., d_model]; a ``NoHeads`` in those without heads. final_norm, unembed: the
            parts behind the last block.
        without_heads: the layers that have no heads; their rows in every table are zeros.
        attention_path: of a layer's attention in the layer.
        facts: what the model was found to do when it was opened (``headcodes.models.check``).
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
        mlp_writes: str | None,
        final_norm: nn.Module | None,
        unembed: nn.Module,
        n_heads: int,
        n_kv_heads: int,
        revision: str | None = None,
        projection: str | None = None,
        known_checksum: str | None = None,
    ) -> None:
        self.name = name
        self.revision = revision
        self.projection = projection
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
        self.facts = Facts()
        self.attention_path = attention
        self._mlp = mlp
        self._mlp_writes = mlp_writes
        self._checksum = known_checksum
        self.without_heads = tuple(layer for layer, part in enumerate(projections) if isinstance(part, NoHeads))
        sizes = {layer: widths(part) for layer, part in enumerate(projections) if layer not in self.without_heads}
        unknown = next((layer for layer, size in sizes.items() if size is None), None)
        if unknown is not None:
            raise HeadcodesError(
                "An output projection must be a linear layer",
                f"{type(projections[unknown]).__name__} in layer {unknown}",
                "Check projection= and the model's class.",
            )
        known = [size for size in sizes.values() if size is not None]
        self.d_model = known[0][1]
        if any(n_in % n_heads for n_in, _ in known):
            raise HeadcodesError(
                "The projection's input must hold the heads side by side",
                f"a width of {next(n_in for n_in, _ in known if n_in % n_heads)} for {n_heads} heads",
                "Check projection= and the model's configuration.",
            )
        self.d_head = max(n_in // n_heads for n_in, _ in known)
        self.d_heads = [
            size[0] // n_heads if (size := sizes.get(layer)) else self.d_head for layer in range(len(layers))
        ]
        for layer in self.without_heads:
            projections[layer] = NoHeads(n_heads * self.d_head)
        self.d_vocab = int(weights_of(unembed).weight.shape[0])

    @property
    def parallel_attn_mlp(self) -> bool:
        """Whether attention and MLP of a layer read the same input."""
        return self.facts.parallel

    def __repr__(self) -> str:
        sizes = f"{self.n_layers} layers x {self.n_heads} heads x {self.d_head}, d_model={self.d_model}"
        return f"Model({self.name!r}, {self.family}, {sizes}, {self.dtype}, {self.device})"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the model computes in: its weights', or where they are quantised its unembedding's."""
        for part in (*self.projections, self.unembed):
            weight: Tensor | None = getattr(weights_of(part), "weight", None)
            if isinstance(weight, Tensor) and weight.is_floating_point() and weight.element_size() > 1:
                return weight.dtype
        return torch.float32

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

    @property
    def real_heads(self) -> Bool[np.ndarray, "n_layers n_heads"]:
        """Which entries of a table of layers by heads are heads: all but those of ``without_heads``."""
        return self.real_parts(self.n_heads)

    def real_parts(self, n_columns: int) -> Bool[np.ndarray, "n_layers n_columns"]:
        """Return the same of a table that may have a further column, of MLPs."""
        real = np.ones((self.n_layers, n_columns), dtype=bool)
        real[list(self.without_heads), : self.n_heads] = False
        return real

    @cached_property
    def W_O(self) -> Float[Tensor, "n_layers n_heads d_head d_model"]:
        """Every head's output weights, in the weights' dtype, on ``device``.

        The weights of layer l's projection, cut by query head: ``z[l, h] @ W_O[l, h]``, summed over h, plus the
        projection's bias, is the projection's output, adapters included. Grouped-query attention shares keys and
        values, not these. Rows that a layer's narrower heads lack are zero.
        """
        # A plain tensor wherever it is first asked for: autograd cannot use one made in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            weights = torch.zeros(
                self.n_layers, self.n_heads, self.d_head, self.d_model, dtype=self.dtype, device=self.device
            )
            for layer, module in enumerate(self.projections):
                if layer in self.without_heads:
                    continue
                d_head = self.d_heads[layer]
                weights[layer, :, :d_head] = matrix_of(module).view(self.n_heads, d_head, self.d_model)
        return weights

    def by_head(self, layer: int, z: Float[Tensor, "*where column"]) -> Float[Tensor, "*where head d_head"]:
        """Cut a projection's input into heads, filled up with zeros to ``d_head`` where a layer's are narrower."""
        heads = z.unflatten(-1, (self.n_heads, self.d_heads[layer]))
        return torch.nn.functional.pad(heads, (0, self.d_head - self.d_heads[layer]))

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
        # How much an adapter counts is written in no weight.
        for name, part in self.module.named_modules():
            if isinstance(getattr(part, "scaling", None), dict):
                state = [name, part.scaling, getattr(part, "active_adapters", None), getattr(part, "merged", None)]
                state.append(getattr(part, "disable_adapters", None))
                digest.update(json.dumps(state, default=str).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def longest_shared(self) -> int:
        """Longest prompt that may share a row with others behind a mask of its own; 0 where no row may be shared.

        Where it was found to give what each gives alone; a window that slides over the row would not know which tokens
        belong together, so prompts must fit into it.
        """
        if not self.facts.shares_rows or attention_way(self) not in ("sdpa", "eager"):
            return 0
        config: Any = getattr(self.module, "config", None)
        return int(getattr(config.get_text_config(), "sliding_window", None) or sys.maxsize)

    def attention(self, layer: int) -> nn.Module:
        """Return the attention of a layer with heads. Its query, key and value projections may be fused (GPT-2)."""
        return resolve_path(self.layers[layer], self.attention_path)

    def mlp(self, layer: int) -> nn.Module | None:
        """Return the module whose output is a layer's MLP output (before any norm that follows).

        None where there is none, and where it is not what the MLP adds to the stream (``facts.stream``).
        """
        if self._mlp_writes is None or self.facts.stream is not None:
            return None
        return resolve_path(self.layers[layer], self._mlp_writes)

    def mlp_reader(self, layer: int) -> nn.Module | None:
        """Return the module whose input is what a layer's MLP reads, or None."""
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
        """Run the model over token ids; register hooks first to see something inside.

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
        places = inputs.get("position_ids")
        longest = tokens.shape[1] if places is None else int(places.max()) + 1
        self.check_length(longest)
        tokens = tokens.to(self.device)
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask.to(self.device)
        bridge = is_bridge(self.module)
        if not bridge:
            inputs["use_cache"] = False
        with self.stand_ins(self.without_heads):
            return self._run(tokens, logits_at, vocab, inputs, bridge)

    @contextmanager
    def stand_ins(self, layers: Sequence[int]) -> Iterator[None]:
        """Let those of ``layers`` that have no heads be listened to like the others while they are run."""
        with ExitStack() as hooks:
            for layer in layers:
                part = self.projections[layer]
                if isinstance(part, NoHeads):
                    hooks.enter_context(part.running(self.layers[layer]))
            yield

    def _run(
        self, tokens: Tensor, logits_at: Tensor | None, vocab: Tensor | None, inputs: dict[str, Any], bridge: bool
    ) -> Tensor | None:
        body = None if bridge else body_of(self.module)
        if logits_at is None and body is not None:
            body(input_ids=tokens, **inputs)
            return None
        at = torch.zeros(len(tokens), dtype=torch.long) if logits_at is None else logits_at.cpu()
        if at.ndim == 1:
            at = torch.stack([torch.arange(len(tokens)), at], dim=1)
        with logits_only(self.unembed, at, vocab, self.facts.plain_unembedding):
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
        # A masked token's logit may be minus infinity among all of them; among those asked for none may be.
        if bool((logits.isnan() if vocab is None else ~logits.isfinite()).any()):
            raise self.not_finite(tokens, inputs)
        return logits.float()

    def check_length(self, n_tokens: int, which: str = "one") -> None:
        """Refuse a prompt longer than the model's table of positions.

        Raises:
            HeadcodesError: it is.
        """
        if self.facts.positions is not None and n_tokens > self.facts.positions:
            raise HeadcodesError(
                f"a prompt must have at most {self.facts.positions} tokens, for which {self.name} has positions",
                f"{which} of {n_tokens} tokens",
                "Shorten it, or leave it out.",
            )

    def not_finite(self, tokens: Tensor, inputs: dict[str, Any]) -> HeadcodesError:
        """Say from which layer on numbers are not finite on ``tokens``, and what to do."""
        bad: list[int] = []

        def note(layer: int) -> Any:
            def look(_module: nn.Module, _args: Any, output: Any) -> None:
                if not bool(first_of(output).isfinite().all()):
                    bad.append(layer)

            return look

        with ExitStack() as hooks:
            for layer, block in enumerate(self.layers):
                hooks.callback(block.register_forward_hook(note(layer)).remove)
            if is_bridge(self.module):
                self.module(tokens, return_type="logits", **inputs)
            else:
                self.module(input_ids=tokens, **inputs)
        weights = any(not bool(part.isfinite().all()) for part in self.module.parameters() if part.is_floating_point())
        return HeadcodesError(
            "A model's numbers must be finite",
            f"NaN or infinity {f'from layer {min(bad)} on' if bad else 'in the logits'} in {self.name}, which computes"
            f" in {str(self.dtype).removeprefix('torch.')}",
            "Its weights hold such numbers themselves: get them anew." if weights else "Load it with dtype='float32'.",
        )
