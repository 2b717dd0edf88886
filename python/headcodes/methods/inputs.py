"""What a method is given and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from headcodes.activations import HeadActivations, capture
from headcodes.errors import HeadcodesError
from headcodes.task_check import TaskCheck, check_task, logit_differences

if TYPE_CHECKING:
    from jaxtyping import Float, Int32
    from torch import Tensor

    from headcodes.models import Model
    from headcodes.prompts import TokenPairs
    from headcodes.sae import SparseAutoencoder

Positions = Literal["mean", "last"] | Sequence[Sequence[int]]


@dataclass
class Inputs:
    """A model and the prompt pairs to explain it on, with everything that methods share.

    Head activations are captured on first use and once: several methods, levels and seeds on one model and one set of
    prompts cost one forward pass.

    Attributes:
        bos: what was asked for: "auto", "yes" or "no".
        positions: "mean" (over all of a prompt's positions), "last", or the positions to average: a list a prompt,
            all clean prompts, then all corrupted ones.
        n_train: prompts that the autoencoder of a code method is trained on.
        backend: of the encoder: "auto", "torch" or "triton".
        cache: whether activations are looked for, and kept, in the cache folder (``headcodes.activation_cache``).
        request: the cache's key of the request that these inputs answer, under which they can be found again.
        capture_s: seconds the capture took; 0 before it.
    """

    model: Model
    tokens: TokenPairs
    bos: str = "auto"
    positions: Positions = "mean"
    n_train: int = 10
    backend: str = "auto"
    cache: bool = False
    request: str | None = None
    capture_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.n_train < 1:
            raise HeadcodesError(
                "n_train must be at least 1", str(self.n_train), "The published method takes 5 to 10 prompts."
            )
        if isinstance(self.positions, str) and self.positions not in ("mean", "last"):
            raise HeadcodesError(
                'positions are "mean", "last" or a list of positions a prompt', repr(self.positions), 'Use "mean".'
            )

    @property
    def threads(self) -> int:
        """Threads for the C++ core: as many as torch has."""
        return torch.get_num_threads()

    @cached_property
    def _captured(self) -> tuple[HeadActivations, list[Tensor]]:
        start = time.perf_counter()
        if self.cache:
            from headcodes import activation_cache

            captured = activation_cache.captured(self.model, self.tokens, self.positions, request=self.request)
            self.capture_s = time.perf_counter() - start
            return captured
        tokens = self.tokens
        activations, logits = capture(
            self.model, tokens.clean + tokens.corrupt, positions=self.positions, answer_ids=tokens.scored_ids * 2
        )
        assert logits is not None
        self.capture_s = time.perf_counter() - start
        return activations, logits

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
        return check_task(self.tokens.pairs.task, *self.logit_differences)


@dataclass(frozen=True)
class Edges:
    """Scores of the edges of the whole graph: embedding, heads, MLPs and logits, queries, keys and values apart.

    Attributes:
        sources: names of the nodes that write: ``input``, ``a{l}.h{h}``, ``m{l}``, in the order in which they do.
        destinations: names of what reads: ``a{l}.h{h}<q>`` (and ``<k>``, ``<v>``), ``m{l}``, ``logits``.
        scores: float64, signed: what the metric loses when the edge carries the corrupted prompt's value. NaN where
            the source writes too late for the destination to read it.
    """

    sources: list[str]
    destinations: list[str]
    scores: Float[np.ndarray, "n_source n_destination"]


@dataclass
class Findings:
    """What a method found.

    Attributes:
        head_scores: float64 [n_layers, n_heads], larger is more likely in the circuit.
        signed: the same with a sign, where the method has one: what the metric loses without the head.
        other_nodes: scores, signed like ``signed``, of ``input`` and ``m{layer}``, where the method has them.
        edges: every edge's score, where the method has them; edge level only.
        pair_scores: float64 [n_component, n_component], symmetric, zero diagonal; edge level only.
        mention_scores: float64 [n_component], the published "edge level" score of a head; edge level only.
        codes: int32 [2 * n_pairs, n_component], clean prompts first; code methods only.
        judged: bool [2 * n_pairs], the prompts whose codes the scores were made from.
        counted: codes of the positives, codes of the negatives and the dead code (None: no code is dead), of the pairs
            that did not train the autoencoder; only of methods whose scores are the counts of ``headcodes.overlap``,
            which a permutation test can take again.
        sae: the autoencoder behind the codes.
        dead_share: share of (prompt, head) rows in which no latent is active.
        timings_s: seconds a stage.
    """

    head_scores: Float[np.ndarray, "n_layers n_heads"]
    signed: Float[np.ndarray, "n_layers n_heads"] | None = None
    other_nodes: dict[str, float] = field(default_factory=dict)
    edges: Edges | None = None
    pair_scores: Float[np.ndarray, "n_component n_component"] | None = None
    mention_scores: Float[np.ndarray, " n_component"] | None = None
    codes: Int32[np.ndarray, "n_prompt n_component"] | None = None
    judged: np.ndarray | None = None
    counted: tuple[Int32[np.ndarray, "n c"], Int32[np.ndarray, "n c"], int | None] | None = None
    sae: SparseAutoencoder | None = None
    dead_share: float | None = None
    timings_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model) -> Findings:
        """Return findings about ``model`` with every score at zero, for a method to fill in."""
        return cls(head_scores=np.zeros((model.n_layers, model.n_heads)))

    def set_heads(self, scores: Float[Tensor, ...]) -> None:
        """Take scores of all heads, layer-major in any shape, as ``head_scores``."""
        self.head_scores = scores.detach().to("cpu", torch.float64).numpy().reshape(self.head_scores.shape)

    def set_signed(self, scores: Float[Tensor, ...]) -> None:
        """Take signed scores of all heads: ``head_scores`` are their magnitudes, as their authors rank them."""
        self.set_heads(scores)
        self.signed, self.head_scores = self.head_scores, np.abs(self.head_scores)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent inside to ``timings_s[stage]``."""
        start = time.perf_counter()
        yield
        self.timings_s[stage] = self.timings_s.get(stage, 0.0) + time.perf_counter() - start
