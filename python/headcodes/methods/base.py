"""What a method is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from headcodes.errors import HeadcodesError
from headcodes.settings import Level

if TYPE_CHECKING:
    from headcodes.methods.findings import Findings
    from headcodes.methods.inputs import Inputs
    from headcodes.settings import Metric

Cost = Literal["forward", "backward", "ablation", "none"]


@dataclass(frozen=True, slots=True)
class Method:
    """A way of scoring heads.

    Attributes:
        id: the name in library, command line and results.
        summary: one line for ``headcodes methods``.
        source: where the method was published.
        cost: the dearest thing it does to the model: plain forward passes, backward passes, ablations, or nothing.
        levels: what it can score; every method scores nodes.
        module: the module under ``headcodes.methods`` that implements it: its ``find``, or the ``find_many`` of a
            method with codes, which does several seeds at once.
        coded: whether scores come from the codes of an autoencoder: those of several seeds are trained and used
            together.
        permutable: whether codes are counted, which a permutation test can do again under other labels.
        metric: of the answer that it works with unless told (``interventions.metric``); None: it has none.
        confirmed: whether ``discover`` patches exactly what this proposes without being asked; methods of others are
            shown as they were published.
        seeded: whether another seed gives other scores; codes alone may depend on it without.
    """

    id: str
    summary: str
    source: str
    cost: Cost
    levels: tuple[Level, ...]
    module: str
    coded: bool = False
    permutable: bool = False
    seeded: bool = False
    metric: Metric | None = None
    confirmed: bool = False

    def find(self, inputs: Inputs, level: Level = "node", seed: int = 0) -> Findings:
        """Score every head of ``inputs.model``, and every pair of heads where ``level`` is ``"edge"``.

        Raises:
            HeadcodesError: the method has no such level.
        """
        return self.find_many(inputs, level, [seed])[0]

    def find_many(self, inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
        """Do what ``find`` does for every seed, one findings a seed, in their order.

        What the seeds share is done once, its seconds in the first findings; autoencoders are trained together.

        Raises:
            HeadcodesError: the method has no such level.
        """
        if level not in self.levels:
            from headcodes.methods import METHODS

            others = ", ".join(method.id for method in METHODS.values() if level in method.levels)
            raise HeadcodesError(
                f"method {self.id!r} scores {' and '.join(self.levels)} level only",
                f"level={level!r}",
                f"Choose another level, or a method that has it: {others}.",
            )
        module = import_module(f"headcodes.methods.{self.module}")
        if self.coded:
            found: list[Findings] = module.find_many(self.id, inputs, level, seeds)
            return found
        return [module.find(self.id, inputs, level, seed) for seed in seeds]
