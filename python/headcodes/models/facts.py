"""What a model was found to do when it was run, in place of what its names suggest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headcodes.graph import numbered


@dataclass(frozen=True, slots=True)
class Facts:
    """The verdict of ``headcodes.models.check`` on one model in one dtype.

    Attributes:
        n_kv_heads: heads that have keys and values of their own.
        without_heads: layers that have no attention heads (linear attention, state spaces, convolutions, an MLP
            alone): they are run and left out.
        beside: by layer, the name of a part that writes to the stream beside heads and MLP, or None; empty where there
            is none in any layer. Edges to and from such parts are not known.
        parallel: attention and MLP of a layer read the same residual stream.
        attention_scale, mlp_scale: per layer, what the attention's and the MLP's output (behind a norm, where one
            follows) is multiplied by on its way into the residual stream. Empty: by one everywhere.
        logit_scale: what the unembedding's result is multiplied by (a soft cap is not counted).
        plain_unembedding: what the unembedding puts out is the product with its weights, and its bias: no adapter, no
            scale of its own.
        stream: why embedding, heads and MLPs do not add up to what the final norm reads; None where they do.
        slots: why a head's queries, keys and values cannot be told apart; None where they can.
        layout: where queries, keys and values lie in a layer: "separate" modules, or one module that holds three
            "blocks" of them, or the heads one after another ("grouped").
        norms_behind: a norm stands between what heads or MLPs put out and the stream (Gemma 2 and 3).
        norms_over_heads: which of queries and keys ("q", "k") pass a norm that spans all heads.
        shares_rows: several prompts in one row, behind a mask of their own, give what each gives alone.
        positions: how many positions the model has learned embeddings for; None where it computes positions.
        trained: how many positions the configuration names; None where it names none.
        sum_error: largest deviation of the sum of parts, as a share of the largest number in the stream.
        batch_error: largest deviation of a head's result between a prompt alone, in a batch, filled up and, where
            ``shares_rows``, in a shared row; as a share of the largest result.
    """

    n_kv_heads: int = 0
    without_heads: tuple[int, ...] = ()
    beside: tuple[str | None, ...] = ()
    parallel: bool = False
    attention_scale: tuple[float, ...] = ()
    mlp_scale: tuple[float, ...] = ()
    logit_scale: float = 1.0
    plain_unembedding: bool = True
    stream: str | None = None
    slots: str | None = None
    layout: str = "separate"
    norms_behind: bool = False
    norms_over_heads: tuple[str, ...] = ()
    shares_rows: bool = False
    positions: int | None = None
    trained: int | None = None
    sum_error: float = 0.0
    batch_error: float = 0.0

    @property
    def edges(self) -> str | None:
        """Why the model has no edges, or None."""
        if self.stream or self.slots:
            return self.stream or self.slots
        others = [(layer, name) for layer, name in enumerate(self.beside) if name is not None]
        if not others:
            return None
        names = ", ".join(dict.fromkeys(part for _, name in others for part in name.split(", ")))
        where = numbered(layer for layer, _ in others)
        return f"parts that are no heads and no MLPs ({names}) write to the stream in {where}"

    def scale(self, kind: str, layer: int) -> float:
        """Return what a layer's "z" or "mlp" is multiplied by on its way into the stream."""
        scales = self.attention_scale if kind == "z" else self.mlp_scale
        return scales[layer] if scales else 1.0


def facts_from_json(kept: dict[str, Any]) -> Facts:
    """Return facts from what ``dataclasses.asdict`` and JSON made of them.

    Raises:
        TypeError: names of another version.
    """
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    return Facts(**values)
