"""Whether a model does a task at all: the question before any other."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headcodes.errors import HeadcodesError, HeadcodesWarning

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from headcodes.prompts.tokens import TokenPairs


_ENOUGH = 0.8


@dataclass(frozen=True)
class TaskCheck:
    """How a model answers prompt pairs.

    A prompt is answered right when the right answers outweigh the wrong ones: its logit difference, logsumexp
    over the right answers' logits less logsumexp over the wrong ones', is above zero.

    Attributes:
        n_pairs: number of prompt pairs.
        share_right: share of the positives that are answered right.
        positive_logit_diff: mean over the positives.
        negative_logit_diff: mean over the negatives, judged by the same answers.
        negative_share_right: share of the negatives with a logit difference above zero.
        answered: bool [n_pairs], which positives are answered right.
        whole_share_right: share of the positives whose right answers are likelier than the wrong ones as whole
            sequences; None where that was not asked for.
        whole_log_ratio: mean over the positives of log p(right answers) - log p(wrong ones), in nats.
    """

    n_pairs: int
    share_right: float
    positive_logit_diff: float
    negative_logit_diff: float
    negative_share_right: float
    answered: np.ndarray = field(repr=False, compare=False)
    whole_share_right: float | None = None
    whole_log_ratio: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, ready for JSON; ``answered`` only as the count that ``share_right`` implies."""
        whole = {"whole_share_right": self.whole_share_right, "whole_log_ratio": self.whole_log_ratio}
        return {
            "n_pairs": self.n_pairs,
            "share_right": self.share_right,
            "positive_logit_diff": self.positive_logit_diff,
            "negative_logit_diff": self.negative_logit_diff,
            "negative_share_right": self.negative_share_right,
            **(whole if self.whole_share_right is not None else {}),
        }


def logit_difference(
    right: Float[Tensor, "*prompt n_right"], wrong: Float[Tensor, "*prompt n_wrong"]
) -> Float[Tensor, "*prompt"]:
    """Return logsumexp over the right answers' logits less logsumexp over the wrong ones': log-odds of the two sets.

    Logits of -inf leave an answer out; log-probabilities give the same difference.
    """
    return right.logsumexp(-1) - wrong.logsumexp(-1)


def logit_differences(tokens: TokenPairs, logits: Sequence[Tensor]) -> Float[np.ndarray, " n_pairs"]:
    """Return ``logit_difference`` of every prompt, in float64.

    Args:
        tokens: the prompt pairs.
        logits: of each prompt, the logits of ``tokens.scored_ids`` at its last position: right answers first.
    """
    differences = np.empty(len(logits))
    alike: dict[tuple[int, int], list[int]] = {}
    for i, row in enumerate(logits):
        n_right, n_wrong = len(tokens.answers[i]), len(tokens.wrong_answers[i])
        if len(row) != n_right + n_wrong:
            raise HeadcodesError(
                f"prompt {i} must have the logits of its right and its wrong answers",
                f"{len(row)} logits for {n_right} + {n_wrong} answers",
                "Take the logits of tokens.scored_ids.",
            )
        alike.setdefault((n_right, n_wrong), []).append(i)
    # Prompts with equally many answers at once.
    for (n_right, _), rows in alike.items():
        scores = torch.stack([logits[i].detach() for i in rows]).cpu().double()
        differences[rows] = logit_difference(scores[:, :n_right], scores[:, n_right:]).numpy()
    return differences


def check_task(
    task: str,
    clean: Float[np.ndarray, " n_pairs"],
    corrupt: Float[np.ndarray, " n_pairs"],
    whole: Float[np.ndarray, " n_pairs"] | None = None,
) -> TaskCheck:
    """Say how a model answers prompt pairs, and warn where it mostly does not.

    Args:
        task: what the pairs ask, for the warning.
        clean: ``logit_differences`` of the clean prompts.
        corrupt: those of the corrupted prompts, judged by the same answers.
        whole: log-probability ratios of whole answers to the clean prompts, where they were asked for.

    Warns:
        HeadcodesWarning: fewer than 80% of the positives are answered right. A circuit is the mechanism of a
            behaviour; where the behaviour is missing, what is found is something else.
    """
    answered = clean > 0
    share = float(answered.mean())
    if share < _ENOUGH:
        warnings.warn(
            f"the model answers only {share:.0%} of the {len(answered)} positives right (below {_ENOUGH:.0%}): it"
            f" hardly does the task {task}, so heads found on it explain something else",
            HeadcodesWarning,
            stacklevel=2,
        )
    return TaskCheck(
        n_pairs=len(answered),
        share_right=share,
        positive_logit_diff=float(clean.mean()),
        negative_logit_diff=float(corrupt.mean()),
        negative_share_right=float((corrupt > 0).mean()),
        answered=answered,
        whole_share_right=None if whole is None else float((whole > 0).mean()),
        whole_log_ratio=None if whole is None else float(whole.mean()),
    )
