"""The whole graph of a transformer: what every part writes to the residual stream, and what it reads from it.

Reading is linear in gradients: from the gradient at a layer's head results, autograd gives those at each head's
queries, keys and values, the projections' weights give those at the normed input, head by head, and the norm's own
backward those at the residual stream. No module is changed; hooks note tensors of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.graph import Graph
from headcodes.models.families import part_at
from headcodes.models.hooks import edit_input, first_of
from headcodes.models.memory import node_bytes_per_token
from headcodes.models.slots import norm_over_heads, slot_projection
from headcodes.models.weights import matrix_of

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.models.model import Model


def has_mlps(model: Model) -> bool:
    """Whether the model's layers have MLPs that can be read."""
    return model.mlp(0) is not None


def graph_of(model: Model) -> Graph:
    """Return the nodes and edges of a model."""
    return Graph(model.n_layers, model.n_heads, has_mlps(model), model.parallel_attn_mlp)


def edge_bytes_per_token(model: Model) -> int:
    """Estimate what one token of a pair holds while edges are scored: the graph, what is noted of every layer for more
    gradients, every source, one layer's readers."""
    n_source = 1 + model.n_layers * (model.n_heads + 1)
    noted = model.n_layers * (4 * model.d_model + 2 * model.n_heads * model.d_head)
    return node_bytes_per_token(model) + 4 * int(model.d_model * (n_source + 9 * model.n_heads) + noted)


class Reads:
    """Notes what one forward pass reads and writes, as tensors of its graph.

    Use ``recording`` as the ``also`` of ``gradients.run``; for gradients, with gradients on and ``slots``.

    Raises:
        HeadcodesError: a model whose parts were found not to add up to what its final norm reads; with ``slots`` also
            one whose queries, keys and values cannot be told apart by head.
    """

    def __init__(self, model: Model, slots: bool = True) -> None:
        reason = model.facts.edges if slots else model.facts.stream
        if reason is not None:
            raise HeadcodesError(
                "parts must only add to the residual stream, and heads have queries, keys and values of their own",
                f"{model.name}, where they are not: {reason}",
                "Use another method, or level='node'.",
            )
        self.model = model
        self.graph = graph_of(model)
        names = "qkv" if slots else ""
        self.slots = [{slot: slot_projection(model, layer, slot) for slot in names} for layer in range(model.n_layers)]
        self._slot_in: dict[int, Tensor] = {}
        self._slot_out: dict[tuple[int, nn.Module], Tensor] = {}
        self._slot_normed: dict[tuple[int, str], Tensor] = {}
        self._layer_calls: dict[int, list[tuple[nn.Module, Tensor, Tensor]]] = {}
        self._attention_out: dict[int, Tensor] = {}
        self._mlp_out: dict[int, Tensor] = {}
        self._mlp_read: dict[int, Tensor] = {}
        self.mlp_in: dict[int, Tensor] = {}
        self.final_in: Tensor

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note tensors while open."""
        model = self.model
        with ExitStack() as hooks:
            for layer, block in enumerate(model.layers):
                self._layer_calls[layer] = []
                attention = part_at(block, model.attention_path)
                mlp, reader = model.mlp(layer), model.mlp_reader(layer)
                for child in block.children():
                    if child not in (attention, mlp, reader) and not isinstance(child, nn.Dropout):
                        hooks.callback(child.register_forward_hook(self._note_child(layer)).remove)
                for module in dict.fromkeys(module for module, _ in self.slots[layer].values()):
                    hooks.callback(module.register_forward_hook(self._note_slot(layer)).remove)
                for slot in model.facts.norms_over_heads if self.slots[layer] else ():
                    norm = norm_over_heads(model, layer, slot)
                    assert norm is not None
                    hooks.callback(norm.register_forward_hook(self._note_slot_norm(layer, slot)).remove)
                hooks.callback(
                    model.projections[layer].register_forward_hook(self._note(self._attention_out, layer)).remove
                )
                if mlp is not None:
                    hooks.enter_context(edit_input(self.mlp_reader(layer), self._note_mlp_in(layer)))
                    hooks.callback(mlp.register_forward_hook(self._note(self._mlp_out, layer)).remove)
            assert model.final_norm is not None
            hooks.enter_context(edit_input(model.final_norm, self._note_final))
            yield

    def mlp_reader(self, layer: int) -> nn.Module:
        """Return the module whose input is what a layer's MLP reads."""
        part = self.model.mlp_reader(layer)
        assert part is not None
        return part

    def mlp_norm(self, layer: int) -> tuple[nn.Module | None, Tensor]:
        """Return the norm before a layer's MLP, if any, and what it read in this pass."""
        return self.norm_before(layer, self._mlp_read[layer])

    def _note_child(self, layer: int) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                self._layer_calls[layer].append((module, args[0], output))

        return note

    def _note_slot(self, layer: int) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self._slot_in[layer] = args[0]
            self._slot_out[layer, module] = output

        return note

    def _note_slot_norm(self, layer: int, slot: str) -> Any:
        def note(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            self._slot_normed[layer, slot] = output

        return note

    def _note(self, where: dict[int, Tensor], layer: int) -> Any:
        def note(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            where[layer] = first_of(output)

        return note

    def _note_mlp_in(self, layer: int) -> Any:
        def note(x: Tensor) -> Tensor:
            # Attention may read the same tensor; a view of its own keeps the gradients apart.
            self._mlp_read[layer], self.mlp_in[layer] = x, x.view_as(x)
            return self.mlp_in[layer]

        return note

    def _note_final(self, x: Tensor) -> Tensor:
        self.final_in = x.view_as(x)
        return self.final_in

    def written(self, kind: str, layer: int, difference: Tensor) -> Float[Tensor, "source batch*seq*d_model"]:
        """Return what a difference in one part ("input", "z", "mlp" of a layer) comes to in the residual stream, fp32.

        Where a norm stands between a part and the stream (Gemma 2 and 3), the difference goes through its derivative.
        """
        model = self.model
        if kind == "input":
            return difference.float().reshape(1, -1)
        if kind == "mlp":
            scaled = difference.float()[None] * model.facts.scale("mlp", layer)
            return self._after_norm(kind, layer, scaled).flatten(1)
        z = model.by_head(layer, difference.float()) * model.facts.scale("z", layer)
        heads = torch.einsum("bshd,hdm->hbsm", z, model.W_O[layer].to(z.device).float())
        return self._after_norm(kind, layer, heads).flatten(1)

    def norm_behind(self, kind: str, layer: int) -> tuple[nn.Module | None, Tensor]:
        """Return the norm between a layer's "z" or "mlp" and the stream (Gemma 2 and 3), if any, and its input."""
        written = (self._attention_out if kind == "z" else self._mlp_out)[layer]
        return next((module for module, x, _ in self._layer_calls[layer] if x is written), None), written

    def _after_norm(self, kind: str, layer: int, differences: Tensor) -> Tensor:
        norm, at = self.norm_behind(kind, layer)
        if norm is None:
            return differences
        point = at.detach()
        through = [torch.func.jvp(norm.forward, (point,), (d.to(point.dtype),))[1].float() for d in differences]
        return torch.stack(through)

    def head_reads(self, layer: int, z: Tensor, gradient: Tensor) -> Float[Tensor, "slot*head batch seq d_model"]:
        """Return the gradient at what each of a layer's heads reads, before the norm: queries, keys, values.

        Keys and values that several heads share (grouped queries) are told apart by letting the gradient back through
        one head of each group at a time.
        """
        model = self.model
        group = model.n_heads // model.n_kv_heads
        made = {slot: self._slot_out[layer, module] for slot, (module, _) in self.slots[layer].items()}
        made |= {slot: self._slot_normed[layer, slot] for slot in model.facts.norms_over_heads}
        outputs = list({id(part): part for part in made.values()}.values())
        shape = (*z.shape[:2], model.n_heads, model.d_heads[layer])
        by_head: list[Tensor] = []
        gradient = gradient.reshape(shape)
        for member in range(group):
            part = torch.zeros_like(gradient)
            part[:, :, member::group] = gradient[:, :, member::group]
            found = torch.autograd.grad(z, outputs, part.flatten(2), retain_graph=True)
            found_by_output = {id(part): gradient for part, gradient in zip(outputs, found, strict=True)}
            for place, slot in enumerate("qkv"):
                values = self.slots[layer][slot][1](found_by_output[id(made[slot])]).float()
                if member == 0:
                    by_head.append(values.new_zeros(*shape[:3], values.shape[-1]))
                by_head[place][:, :, member::group] = values[:, :, member::group] if slot == "q" else values
        normed = self._slot_in[layer]
        reads = []
        for place, slot in enumerate("qkv"):
            module, cut = self.slots[layer][slot]
            if slot in model.facts.norms_over_heads:
                mixed = self._before_heads_norm(layer, slot, by_head[place])
                reads += [self._before_norm(layer, normed, g) for g in mixed]
                continue
            weight = cut(matrix_of(module)).float()  # [d_model, head, d_head]
            if slot != "q":
                weight = weight.repeat_interleave(group, dim=1)
            at_normed = torch.einsum("bshd,mhd->hbsm", by_head[place], weight)
            reads += [self._before_norm(layer, normed, g) for g in at_normed]
        return torch.stack(reads)

    def _before_heads_norm(self, layer: int, slot: str, by_head: Tensor) -> Iterator[Tensor]:
        """Yield each head's gradient at the normed stream, back through a norm that mixes all heads (OLMo 2 and 3)."""
        module, cut = self.slots[layer][slot]
        weight, normed = matrix_of(module).float(), self._slot_normed[layer, slot]
        for head in range(self.model.n_heads):
            own = torch.zeros_like(normed)
            values = cut(own)
            values[:, :, head * values.shape[2] // self.model.n_heads] = by_head[:, :, head].to(own.dtype)
            cut.put(own, values)
            gradient = torch.autograd.grad(normed, self._slot_out[layer, module], own, retain_graph=True)[0]
            yield gradient.float() @ weight.T

    def mlp_reads(self, layer: int, gradient: Tensor) -> Float[Tensor, "1 batch*seq d_model"]:
        """Return the gradient at what a layer's MLP reads, before the norm."""
        return self._before_norm(layer, self._mlp_read[layer], gradient.float())[None]

    def _before_norm(self, layer: int, normed: Tensor, gradient: Tensor) -> Tensor:
        norm, read = self.norm_before(layer, normed)
        if norm is None:
            return gradient
        return torch.autograd.grad(normed, read, gradient.to(normed.dtype), retain_graph=True)[0].float()

    def norm_before(self, layer: int, normed: Tensor) -> tuple[nn.Module | None, Tensor]:
        """Return the norm that made ``normed`` in this pass, and what it read; nothing and ``normed`` if none did."""
        made = ((module, given) for module, given, made in self._layer_calls[layer] if made is normed)
        return next(made, (None, normed))
