"""What every method is given: a model, its prompts, and the activations captured on them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headcodes.activations.capture import N_SIDE_BY_SIDE, HeadActivations, capture_pairs
from headcodes.prompts.task_check import TaskCheck, check_task, logit_differences
from headcodes.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float
    from torch import Tensor

    from headcodes.methods.changes import Changes
    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs
    from headcodes.settings import Components, Metric


@dataclass
class Inputs:
    """A model and the prompt pairs to explain it on, with everything that methods share.

    Head activations are captured on first use and once: several methods, levels and seeds on one model and one set of
    prompts cost one forward pass.

    Attributes:
        settings: what was asked for; of it ``bos``, ``positions`` and ``n_train`` are taken from here.
        backend: of the encoder: "auto", "torch" or "triton".
        cache: whether activations are looked for, and kept, in the cache folder (``headcodes.activations.cache``).
        gradient: whether ``default`` may work out gradients; False: it stands for ``contrast``.
        held_out: pairs, the last ones, that ``attribution`` and ``contrast`` leave out of their scores, so that a
            circuit can be judged on prompts that it was not found on.
        request: the cache's key of the request that these inputs answer, under which they can be found again.
        metric: of which gradients are taken, or which is measured after patching; None: the method's own.
        components: what a circuit may hold: "heads", or "heads+mlps" for methods that score both.
        capture_s: seconds the capture took; 0 before it.
        whole_answers: how much likelier right answers are than wrong ones as whole sequences
            (``models.asked.whole_answer_differences``), for the task check; None: not asked for.
    """

    model: Model
    tokens: TokenPairs
    settings: Settings = field(default_factory=Settings)
    backend: str = "auto"
    cache: bool = False
    gradient: bool = True
    held_out: int = 0
    request: str | None = None
    metric: Metric | None = None
    components: Components = "heads"
    capture_s: float = field(default=0.0, init=False)
    whole_answers: Float[np.ndarray, " n_pairs"] | None = field(default=None, init=False)
    _watch: Changes | None = field(default=None, init=False, repr=False)

    @property
    def with_mlps(self) -> bool:
        """Whether MLPs are scored beside heads."""
        return self.components == "heads+mlps"

    @property
    def n_proposing(self) -> int:
        """How many pairs, the first ones, are not held out."""
        return len(self.tokens) - self.held_out

    @property
    def threads(self) -> int:
        """Threads for the C++ core: as many as torch has."""
        return torch.get_num_threads()

    @cached_property
    def _captured(self) -> tuple[HeadActivations, list[Tensor]]:
        start = time.perf_counter()
        options: dict[str, Any] = {"positions": self.settings.positions, "mlps": self.with_mlps, "watch": self._watch}
        if self.cache:
            from headcodes.activations import cache as activation_cache

            captured = activation_cache.captured(self.model, self.tokens, request=self.request, **options)
        else:
            captured = capture_pairs(self.model, self.tokens, **options)
        self.capture_s = time.perf_counter() - start
        return captured

    def capture(self, changes: bool = False) -> None:
        """Run the model over all prompts, unless that is done or kept: ``activations`` and ``logit_differences``.

        Args:
            changes: measure ``changes`` in the same pass, unless the activations are kept.
        """
        if changes and "_captured" not in self.__dict__:
            self._watch = self._new_watch()
        _ = self._captured

    def changes(self) -> Mapping[str, Float[Tensor, "n_layers n_column"]]:
        """Return how much heads change between the prompts of a pair (``methods.changes.Changes.means``).

        Of the pairs that run side by side and are not held out: from the capture where it measured that, from the
        cache, or from a pass of its own over the pairs that run side by side.
        """
        wanted = self._new_watch()

        def measured() -> dict[str, Tensor]:
            if self._watch is None or self._watch.n_seen != wanted.n_pairs:
                self._watch = wanted
                capture_pairs(self.model, wanted.tokens, watch=wanted)
            return self._watch.means()

        if not self.cache:
            return measured()
        from headcodes.activations.cache import kept

        about = f"changes of {wanted.n_pairs}{' with MLPs' * self.with_mlps}"
        return kept(self.model, wanted.tokens, about, measured)

    def _new_watch(self) -> Changes:
        from headcodes.methods.changes import Changes

        near = self.tokens.subset(range(min(N_SIDE_BY_SIDE, len(self.tokens))))
        return Changes(self.model, near, min(len(near), self.n_proposing), self.with_mlps)

    @property
    def activations(self) -> HeadActivations:
        """Head activations of all clean prompts, then all corrupted ones: z [2 * n_pairs, n_component, d_head]."""
        return self._captured[0]

    @cached_property
    def logit_differences(self) -> tuple[Float[np.ndarray, " n_pairs"], Float[np.ndarray, " n_pairs"]]:
        """Right answers' logits less wrong ones', of all clean and of all corrupted prompts."""
        logits, n_pairs = self._captured[1], len(self.tokens)
        return logit_differences(self.tokens, logits[:n_pairs]), logit_differences(self.tokens, logits[n_pairs:])

    @cached_property
    def task_check(self) -> TaskCheck:
        """How the model answers the prompts; warns where it mostly does not."""
        return check_task(self.tokens.pairs.task, *self.logit_differences, self.whole_answers)
