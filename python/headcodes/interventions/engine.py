"""How edited runs are computed, and how they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from headcodes.errors import HeadcodesError
from headcodes.models.memory import EDITED_BYTES

Engine = Literal["auto", "walk", "forward"]


@dataclass(frozen=True)
class Compute:
    """How edited runs are computed.

    Attributes:
        engine: "walk" through the layers, "forward" passes of the whole model, or "auto": walk where it holds.
        memory_bytes: Bound on the working memory of one batch, beside the weights.

    Raises:
        HeadcodesError: another engine.
    """

    engine: Engine = "auto"
    memory_bytes: int = EDITED_BYTES

    def __post_init__(self) -> None:
        if self.engine not in get_args(Engine):
            raise HeadcodesError("engine must be auto, walk or forward", repr(self.engine), "Leave it at auto.")


AUTO = Compute()


@dataclass(frozen=True)
class EngineUsed:
    """Which engine ran.

    Attributes:
        name: "walk" or "forward", as ``run_edited`` takes them.
        why: why layers could not be walked through; None where they were, or where "forward" was asked for.
    """

    name: str
    why: str | None = None
