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
        cost: the most expensive thing it does to the model: forward passes, backward passes, ablations, or nothing.
        levels: what it can score; every method scores nodes.
        module: the module under ``headcodes.methods`` that implements it: its ``find``, or the ``find_many`` of a
            method with codes, which does several seeds at once.
        coded: whether scores come from the codes of an autoencoder: those of several seeds are trained and used
            together.
        recipe: how its codes are made (``headcodes.codes.recipes``) before its module's ``score`` sees them; None:
            there are none, or its module makes them in its own pass over the model.
        permutable: whether codes are counted, which a permutation test can do again under other labels.
        metric: of the answer that it works with unless told (``interventions.metric``); None: it has none.
        confirmed: whether ``discover`` patches exactly what this proposes without being asked; methods of others are
            shown as they were published.
        by_pair: whether its scores are made from numbers a pair, so that pairs can be drawn anew (``stable``).
        measures_changes: whether it uses ``Inputs.changes``, which the capture measures on its way.
        seeded: whether another seed gives other scores; codes alone may depend on it without.
    """

    id: str
    summary: str
    source: str
    cost: Cost
    levels: tuple[Level, ...]
    module: str
    coded: bool = False
    recipe: str | None = None
    permutable: bool = False
    by_pair: bool = False
    measures_changes: bool = False
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
        self.check(level)
        found = None
        if self.recipe is not None:
            from headcodes.methods import code_sets

            found = code_sets.coded(self.recipe, inputs, level, seeds)
        return self.score(found, inputs, level, seeds)

    def score(self, found: list[Findings] | None, inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
        """Score heads, one findings a seed: from the codes in ``found`` where the method has a recipe.

        Raises:
            HeadcodesError: a score that is not finite.
        """
        module = import_module(f"headcodes.methods.{self.module}")
        scored: list[Findings]
        if found is not None:
            scored = module.score(self.id, found, inputs, level, seeds)
        elif self.coded:
            scored = module.find_many(self.id, inputs, level, seeds)
        else:
            scored = [module.find(self.id, inputs, level, seed) for seed in seeds]
        for findings in scored:
            findings.leave_out(inputs.model.without_heads)
            findings.by_gradients = self.cost == "backward" and findings.fallback is None
        if not all(findings.is_finite for findings in scored):
            raise HeadcodesError(
                "every head's score must be a finite number",
                f"NaN or infinity from method {self.id!r} in {str(inputs.model.dtype).removeprefix('torch.')}",
                "Look at the model's weights, or compute in float32.",
            )
        return scored

    def check(self, level: Level) -> None:
        """Refuse a level that the method does not have.

        Raises:
            HeadcodesError: it has none.
        """
        if level not in self.levels:
            raise HeadcodesError(
                f"the level of method {self.id!r} must be {' or '.join(self.levels)}",
                f"level={level!r}",
                "Choose another level, or a method that has it: `headcodes methods` lists them.",
            )
