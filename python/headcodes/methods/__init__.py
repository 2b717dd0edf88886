"""Methods: the ways of giving every head, and every pair of heads, a score.

One table names them all, so that listing them costs nothing; a method's module is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from headcodes.errors import HeadcodesError

if TYPE_CHECKING:
    from headcodes.methods.inputs import Findings, Inputs

Level = Literal["node", "edge"]
Cost = Literal["forward", "backward", "ablation", "none"]
# Modules whose scores come from the codes of an autoencoder: those of several seeds are trained and used together.
_WITH_CODES = ("code_sets", "default", "code_flip", "hybrid")


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
    """

    id: str
    summary: str
    source: str
    cost: Cost
    levels: tuple[Level, ...]
    module: str

    @property
    def permutable(self) -> bool:
        """Whether codes are counted, which a permutation test can do again under other labels."""
        return self.module in ("code_sets", "default")

    @property
    def seeded(self) -> bool:
        """Whether anything is drawn, so that another seed gives other scores."""
        return self.module in (*_WITH_CODES, "random", "sp")

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
            others = ", ".join(method.id for method in METHODS.values() if level in method.levels)
            raise HeadcodesError(
                f"method {self.id!r} scores {' and '.join(self.levels)} level only",
                f"level={level!r}",
                f"Choose another level, or a method that has it: {others}.",
            )
        module = import_module(f"headcodes.methods.{self.module}")
        if self.module in _WITH_CODES:
            found: list[Findings] = module.find_many(self.id, inputs, level, seeds)
            return found
        return [module.find(self.id, inputs, level, seed) for seed in seeds]


_ONEILL = "O'Neill & Bui 2024, arXiv 2405.12522"

METHODS: dict[str, Method] = {
    method.id: method
    for method in (
        Method(
            "default",
            "how much a head's change speaks for the answer, and to the stream in pairs in which its code flips",
            f"headcodes, with codes after {_ONEILL}",
            "forward",
            ("node", "edge"),
            "default",
        ),
        Method("paper", "the published recipe, to the letter", _ONEILL, "forward", ("node", "edge"), "code_sets"),
        Method(
            "paper-scaled",
            "the published recipe on inputs divided by their standard deviation",
            _ONEILL,
            "forward",
            ("node", "edge"),
            "code_sets",
        ),
        Method(
            "mean-diff",
            "norm of the difference between a head's mean outputs on positives and negatives",
            "no paper: the plain baseline",
            "forward",
            ("node",),
            "mean_diff",
        ),
        Method(
            "code-flip",
            "share of pairs in which a head's code changes",
            f"headcodes, with codes after {_ONEILL}",
            "forward",
            ("node",),
            "code_flip",
        ),
        Method(
            "dla",
            "direct logit attribution: what a head writes at the last position, read as right against wrong logits",
            "Elhage et al. 2021, transformer-circuits.pub; Wang et al. 2022, arXiv 2211.00593",
            "forward",
            ("node",),
            "dla",
        ),
        Method("act-norm", "mean norm of a head's output", "no paper: a floor", "forward", ("node",), "act_norm"),
        Method("random", "uniform random scores", "no paper: a floor", "none", ("node",), "random"),
        Method(
            "hisp",
            "head importance score: gradient of the metric with respect to a gate on each head",
            "Michel et al. 2019, arXiv 1905.10650, as Conmy et al. 2023 ran it",
            "backward",
            ("node",),
            "hisp",
        ),
        Method(
            "eap",
            "edge attribution patching: corruption times gradient, one backward pass",
            "Syed et al. 2023, arXiv 2310.10348",
            "backward",
            ("node", "edge"),
            "eap",
        ),
        Method(
            "eap-ig-inputs",
            "EAP with gradients integrated over inputs between corrupted and clean, 5 steps",
            "Hanna et al. 2024, arXiv 2403.17806",
            "backward",
            ("node", "edge"),
            "eap",
        ),
        Method(
            "eap-ig-activations",
            "EAP with gradients integrated over each layer's own activations, 5 steps",
            "Hanna et al. 2024, arXiv 2403.17806; Marks et al. 2024, arXiv 2403.19647",
            "backward",
            ("node", "edge"),
            "eap",
        ),
        Method(
            "hybrid",
            "EAP's products pair by pair, weighed by whether the head's code changes; one backward pass",
            "headcodes, after Syed et al. 2023 and O'Neill & Bui 2024",
            "backward",
            ("node",),
            "hybrid",
        ),
        Method(
            "acdc",
            "automated circuit discovery: edges (heads in large models) removed from the logits back, at 21 thresholds",
            "Conmy et al. 2023, arXiv 2304.14997",
            "ablation",
            ("node", "edge"),
            "acdc",
        ),
        Method(
            "sp",
            "subnetwork probing: a learned gate on every head",
            "Cao et al. 2021, arXiv 2104.03514, as Conmy et al. 2023 ran it",
            "backward",
            ("node",),
            "sp",
        ),
        Method(
            "patching",
            "exact resample patching of every head (edge level: of every path between two heads)",
            "Wang et al. 2022, arXiv 2211.00593",
            "ablation",
            ("node", "edge"),
            "patching",
        ),
    )
}


def get(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        HeadcodesError: there is none of that name.
    """
    if name not in METHODS:
        raise HeadcodesError(
            "a method is one of " + ", ".join(METHODS), repr(name), "`headcodes methods` describes them."
        )
    return METHODS[name]
