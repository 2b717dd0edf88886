"""One pass over a batch whose rows hold the same tokens, with one thing disturbed in each row within every layer, and
one more row of a prompt of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.models.hooks import edit_input, edit_output, first_of
from headcodes.models.model import Model
from headcodes.models.slots import Cut, norm_over_heads, slot_projection
from headcodes.models.weights import is_bridge, unembedded

if TYPE_CHECKING:
    from jaxtyping import Int

LENGTH = 6
# What is disturbed in each row of the batch: nothing; what the heads give, and what the MLP puts out once it has read.
CLEAN, HEADS, SLOT = 0, 1, {"q": 2, "k": 3, "v": 4}
# All that a layer reads, but not its queries, keys and values.
REST = 5
# Another prompt, of which nothing is disturbed.
OTHER = 6
ROWS = 7


class Record:
    """What one pass over the disturbed batch was seen to do, by layer."""

    def __init__(self) -> None:
        self.entered: dict[int, Tensor] = {}
        self.left: dict[int, Tensor] = {}
        self.z: dict[int, Tensor] = {}
        # What heads and MLPs put out, and the very tensors that went on: those may be written over (Falcon).
        self.written: dict[tuple[str, int], Tensor] = {}
        self.passed: dict[tuple[str, int], Tensor] = {}
        self.mlp_in: dict[int, Tensor] = {}
        self.calls: dict[int, list[tuple[Tensor, Tensor]]] = {}
        # By layer, what parts that are neither attention, MLP nor their norms may add: name and output.
        self.others: dict[int, list[tuple[str, Tensor]]] = {}
        self.slot_shift: dict[tuple[str, int], Tensor] = {}
        self.norms: tuple[str, ...] = ()
        self.n_kv: set[int] = set()
        self.slots: str | None = None
        self.layout = "separate"
        self.final: Tensor | None = None
        self.gap: int | None = None
        self.logits: Tensor = torch.empty(0)
        # What the unembedding was given, and what it made of it for ``scored_tokens``.
        self.unembedded: tuple[Tensor, Tensor] | None = None


def run(model: Model, ids: Int[Tensor, " seq"], other: Int[Tensor, " seq"], *, slots: bool) -> Record:
    """Run the disturbed batch over the token ids and note what each layer does.

    Args:
        other: the token ids of the row that is another prompt.
        slots: whether to disturb queries, keys and values; their projections must be known.

    Raises:
        HeadcodesError: the model does not run on token ids alone, or its logits are not finite; a layer that is run
            more than once in a pass.
    """
    record = Record()
    generator = torch.Generator().manual_seed(0)
    head = model.n_heads // 2
    again: list[int] = []

    def noise(like: Tensor) -> Tensor:
        size = like.float().square().mean().sqrt()
        drawn = torch.randn(like.shape, generator=generator).to(like.device)
        return (drawn * torch.where(size > 0, size, torch.ones_like(size))).to(like.dtype)

    def enter(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            if layer in record.entered:
                again.append(layer)
            if layer and not torch.equal(x, record.left[layer - 1]):
                record.gap = layer
            x = torch.cat([x[:1].expand_as(x[:OTHER]), x[OTHER:]])
            if slots:
                x[REST] += noise(x[REST])
            record.entered[layer] = x.clone()
            return x

        return edit

    def heads(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(z: Tensor) -> Tensor:
            record.z[layer] = z.clone()
            z = z.clone()
            z[HEADS] += noise(z[HEADS])
            return z

        return edit

    def mlp_reads(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            record.mlp_in[layer] = x.reshape(ROWS, -1, x.shape[-1]).clone()
            return x

        return edit

    def mlp_writes(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            out = x.reshape(ROWS, -1, x.shape[-1]).clone()
            out[HEADS] += noise(out[HEADS])
            record.written["mlp", layer] = out
            record.passed["mlp", layer] = out.clone().view(x.shape)
            return record.passed["mlp", layer]

        return edit

    def slot(layer: int, name: str, cut: Cut) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            x = x.clone()
            x[REST] = x[CLEAN]
            row = cut(x[SLOT[name]])  # [seq, head, d_head]
            chosen = head if name == "q" else head * row.shape[-2] // model.n_heads
            # Position 1 of queries; of keys and values position 0, which every later one sees.
            place = row[1 if name == "q" else 0, chosen]
            shift = 4 * noise(place)
            place += shift
            cut.put(x[SLOT[name]], row)
            record.slot_shift[name, layer] = shift
            if name == "k":
                record.n_kv.add(row.shape[-2])
            return x

        return edit

    def note_output(layer: int) -> Callable[..., None]:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            record.left[layer] = first_of(output).clone()

        return note

    def note_call(layer: int) -> Callable[..., None]:
        def note(_module: nn.Module, args: Any, output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                record.calls[layer].append((args[0], output.clone()))

        return note

    def note_other(layer: int, name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            output = first_of(output)
            if isinstance(output, Tensor):
                record.others[layer].append((name, output.clone()))

        return note

    def note_projection(layer: int) -> Callable[..., None]:
        def note(_module: nn.Module, _args: Any, output: Tensor) -> None:
            record.written["z", layer], record.passed["z", layer] = output.clone(), output

        return note

    def note_final(x: Tensor) -> Tensor:
        record.final = x
        return x

    def note_unembedded(_module: nn.Module, args: Any, output: Any) -> None:
        record.unembedded = args[0], output[..., : len(scored_tokens(model))]

    with ExitStack() as hooks:
        for layer, block in enumerate(model.layers):
            record.calls[layer], record.others[layer] = [], []
            hooks.enter_context(edit_input(block, enter(layer)))
            hooks.callback(block.register_forward_hook(note_output(layer)).remove)
            with_heads = layer not in model.without_heads
            if with_heads:
                hooks.enter_context(edit_input(model.projections[layer], heads(layer)))
                hooks.callback(model.projections[layer].register_forward_hook(note_projection(layer)).remove)
            reader, writer = model.mlp_reader(layer), model.mlp(layer)
            if reader is not None and writer is not None:
                hooks.enter_context(edit_input(reader, mlp_reads(layer)))
                hooks.enter_context(edit_output(writer, mlp_writes(layer)))
            attention = model.attention(layer) if with_heads else None
            for part, child in block.named_children():
                if child not in (attention, reader, writer) and not isinstance(child, nn.Dropout):
                    hooks.callback(child.register_forward_hook(note_call(layer)).remove)
                    hooks.callback(child.register_forward_hook(note_other(layer, part)).remove)
            for name in "qkv" if slots and with_heads else "":
                module, cut = slot_projection(model, layer, name)
                norm = norm_over_heads(model, layer, name)
                if norm is not None:
                    record.norms = tuple(dict.fromkeys((*record.norms, name)))
                hooks.enter_context(edit_output(norm or module, slot(layer, name, cut)))
        if model.final_norm is not None:
            hooks.enter_context(edit_input(model.final_norm, note_final))
        hooks.callback(model.unembed.register_forward_hook(note_unembedded).remove)
        last = torch.full((ROWS,), len(ids) - 1)
        try:
            rows = torch.cat([ids.expand(OTHER, -1), other[None]])
            logits = model.trace(rows, logits_at=last, vocab=scored_tokens(model))
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
            if isinstance(error, HeadcodesError):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise HeadcodesError(
                "A model must run on token ids alone", f"{type(error).__name__}: {reason}", "Load its language part."
            ) from error
    if again:
        raise HeadcodesError(
            "Every layer must be run once in a forward pass, so that its heads have one result each",
            f"layer {again[0]} of {model.name} a second time (a looped model)",
            "Take a model of a family in docs/models.md.",
        )
    assert logits is not None
    record.logits = logits
    return record


def plain_unembedding(model: Model, record: Record) -> bool:
    """Say whether the unembedding is its weights and bias: an adapter on it, or a scale inside it, is more."""
    if record.unembedded is None or is_bridge(model.module):
        return True
    hidden, own = record.unembedded
    made = unembedded(model.unembed, hidden, scored_tokens(model), True)
    eps = max(1e-5, 2 * torch.finfo(own.dtype).eps)
    return float((own.to(made) - made).norm()) <= eps * float(made.norm())


def logit_scale(model: Model, record: Record) -> float:
    """Return by what the model multiplies its unembedding's result (Cohere, Granite)."""
    if model.final_norm is None or record.final is None or record.unembedded is None:
        return 1.0
    hidden = model.final_norm(record.final[:, -1])
    if hidden.shape[-1] != record.unembedded[0].shape[-1]:
        return 1.0
    plain = unembedded(model.unembed, hidden, scored_tokens(model), True).flatten()
    scaled = record.logits.to(plain.device).flatten()
    scale = float(plain @ scaled / (plain @ plain).clamp_min(1e-30))
    fits = scale != 0 and float((scaled - scale * plain).norm()) <= 1e-5 * float(scaled.norm())
    return scale if fits and abs(scale - 1) > 1e-3 else 1.0


def scored_tokens(model: Model) -> Int[Tensor, " n_vocab"]:
    """Return the tokens whose logits are looked at."""
    return torch.arange(min(8, model.d_vocab))


def tokens(model: Model) -> Int[Tensor, " seq"]:
    """Draw tokens, none of them special: a picture's place would ask for a picture."""
    config: Any = getattr(model.module, "config", None)
    names = config.to_dict() if hasattr(config, "to_dict") else {}
    special = [value for name, value in names.items() if name.endswith(("_token_id", "_token_index", "_token"))]
    drawn = torch.randperm(model.d_vocab, generator=torch.Generator().manual_seed(0)).tolist()
    ids = [token for token in drawn if token not in special] or drawn
    return torch.tensor((ids * LENGTH)[:LENGTH])
