"""What to change in which row, how that is done while a model runs, and which pairs can share a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.models.hooks import Edit, edit_output
from headcodes.models.model import Model
from headcodes.models.slots import Cut, slot_projection

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.prompts.tokens import TokenPairs


class EditPlan:
    """What to change in which row. Rows 0 and 1 are the clean and the corrupted run; row r edits run r - 2.

    ``starts`` gives the layer at which each edited row enters, in rising order. The edit functions change
    their tensor in place; they are called once a layer with all rows that are there by then, so an edit may
    copy from row to row. ``whole_prompt`` says that an edit changes something before the first changed token
    too.
    """

    starts: Sequence[int] = ()
    whole_prompt = False
    edits_mlps = False

    def edit_heads(self, layer: int, z: Float[Tensor, "row pair pos head d_head"]) -> None:
        """Change heads' results, before the output projection."""

    def edit_mlp(self, layer: int, output: Float[Tensor, "row pair pos d_model"]) -> None:
        """Change the MLP's output; called only where ``edits_mlps`` says so."""

    def slots(self, layer: int) -> str:
        """Return which of "q", "k" and "v" are to be edited in this layer."""
        return ""

    def edit_slot(self, layer: int, slot: str, values: Float[Tensor, "row pair pos head d_head"]) -> None:
        """Change queries, keys or values (before rotary embedding); key and value heads may be fewer than
        heads."""

    def part(self, rows: slice) -> EditPlan:
        """Return the plan of some of the edited rows; only asked for where rows do not depend on one
        another."""
        raise NotImplementedError


@dataclass(frozen=True)
class Group:
    """Pairs of one length with the first changed token at one place."""

    indices: list[int]
    length: int
    start: int


def groups(tokens: TokenPairs) -> list[Group]:
    """Sort pairs by length and first changed position, so that no batch needs padding.

    Raises:
        HeadcodesError: a pair has prompts of unequal length; what one run has at a position, the other lacks.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for index in range(len(tokens)):
        start = tokens.changed_positions(index)[0]
        found.setdefault((len(tokens.clean[index]), start), []).append(index)
    return [Group(indices, length, start) for (length, start), indices in sorted(found.items())]


@dataclass
class Rows:
    """How many rows of how many pairs run now, side by side, and over how many positions."""

    n_rows: int
    n_pairs: int
    n_pos: int


@contextmanager
def editing(
    model: Model,
    plan: EditPlan,
    shape: Rows,
    noted: Callable[[str, int], Float[Tensor, "2 pair pos n"]] | None = None,
    n_control: int = 0,
) -> Iterator[None]:
    """Let ``plan`` edit heads, MLPs and slots wherever it wants to, while open.

    Args:
        noted: what the base runs have at "z", "mlp" or a slot of a layer, where they are not among the rows that run.
        n_control: so many of the rows that run, the first ones, are kept from the plan.
    """

    def edited(x: Tensor, what: str, layer: int, tail: tuple[int, ...], edit: Callable[[Tensor], None]) -> Tensor:
        rows = x.reshape(shape.n_rows, shape.n_pairs, shape.n_pos, *tail)
        if noted is None:
            rows = rows.clone()
            edit(rows)
            return rows.reshape(x.shape)
        base = noted(what, layer)
        both = torch.cat([base.reshape(*base.shape[:3], *tail), rows[n_control:]])
        edit(both)
        return torch.cat([rows[:n_control], both[2:]]).reshape(x.shape)

    def heads(layer: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def edit(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            tail = (model.n_heads, model.d_heads[layer])
            return (edited(args[0], "z", layer, tail, lambda z: plan.edit_heads(layer, z)), *args[1:])

        return edit

    def mlp(layer: int) -> Edit:
        def edit(output: Tensor) -> Tensor:
            return edited(output, "mlp", layer, output.shape[-1:], lambda values: plan.edit_mlp(layer, values))

        return edit

    def slot(layer: int, name: str, cut: Cut) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def edit(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            def its(values: Tensor) -> None:
                cut.edit(values, lambda heads: plan.edit_slot(layer, name, heads))

            return edited(output, name, layer, output.shape[-1:], its)

        return edit

    with ExitStack() as hooks:
        for layer, projection in enumerate(model.projections):
            hooks.callback(projection.register_forward_pre_hook(heads(layer)).remove)
            if plan.edits_mlps:
                module = model.mlp(layer)
                if module is None:
                    raise HeadcodesError(
                        "a model whose MLPs are patched must be of a family whose MLP is known",
                        f"{model!r}",
                        "Patch heads only.",
                    )
                hooks.enter_context(edit_output(module, mlp(layer)))
            for name in plan.slots(layer):
                module, cut = slot_projection(model, layer, name)
                hooks.callback(module.register_forward_hook(slot(layer, name, cut)).remove)
        yield
