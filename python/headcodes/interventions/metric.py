"""Metrics of an answer: what methods take gradients of, and what patching a part changes. Larger is better in all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import torch

from headcodes.errors import HeadcodesError
from headcodes.prompts.task_check import logit_difference
from headcodes.settings import Metric

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from headcodes.interventions.runs import Batch

METRICS: tuple[Metric, ...] = get_args(Metric)


def whole_vocabulary(metric: Metric) -> bool:
    """Whether a metric reads the logits of all tokens, not only of the answers."""
    return metric != "logit-diff"


def measure(
    metric: Metric,
    batch: Batch,
    logits: Float[Tensor, "batch n_logit"],
    clean: Float[Tensor, "batch n_logit"] | None = None,
) -> Float[Tensor, " batch"]:
    """Return a metric of every row of a batch.

    - ``logit-diff``: ``prompts.task_check.logit_difference``.
    - ``prob-diff``: probability of the right answers less that of the wrong ones (Hanna et al. 2023, arXiv 2305.00586).
    - ``kl``: less KL(clean run || this run) over all tokens, in nats (Conmy et al. 2023, arXiv 2304.14997).
    - ``nll``: less the negative log-likelihood of the right answers together, in nats.

    Args:
        logits: of the batch's answers for ``logit-diff`` (as ``runs.run`` gives them), of all tokens for the others.
        clean: the clean run's logits of all tokens, for ``kl``.
    """
    if metric == "logit-diff":
        return batch.logit_diff(logits)
    log_p = logits.log_softmax(1)
    if metric == "kl":
        assert clean is not None
        expected = clean.log_softmax(1)
        return -(expected.exp() * (expected - log_p)).sum(1)
    answers = log_p[:, batch.vocab.to(log_p.device)]
    right, wrong = (
        answers.masked_fill(~chosen.to(answers.device), -torch.inf).logsumexp(1)
        for chosen in (batch.right, batch.wrong)
    )
    return right if metric == "nll" else right.exp() - wrong.exp()


def measure_rows(
    metric: Metric, logits: Float[Tensor, "row n_logit"], right: Sequence[int], wrong: Sequence[int]
) -> Float[Tensor, " row"]:
    """Return ``measure`` of many runs of one prompt, float64, the first of them the clean one.

    Args:
        logits: of the right answers, then the wrong ones, for ``logit-diff``; of all tokens for the others.
        right, wrong: the answers' token ids.
    """
    values = logits.double()
    if metric == "logit-diff":
        return logit_difference(values[:, : len(right)], values[:, len(right) :])
    return measure_log_p(metric, values.log_softmax(1), right, wrong)


def measure_log_p(
    metric: Metric, log_p: Float[Tensor, "row n_token"], right: Sequence[int], wrong: Sequence[int]
) -> Float[Tensor, " row"]:
    """Return ``measure_rows`` from the log-probabilities of all tokens."""
    if metric == "kl":
        return -(log_p[0].exp() * (log_p[0] - log_p)).sum(1)
    # Columns one by one: a list as an index would be copied to the device.
    at_right, at_wrong = (torch.stack([log_p[:, token] for token in tokens], 1) for tokens in (right, wrong))
    if metric == "logit-diff":
        return logit_difference(at_right, at_wrong)
    log_right = at_right.logsumexp(1)
    return log_right if metric == "nll" else log_right.exp() - at_wrong.logsumexp(1).exp()


def refuse_flat(metric: Metric, method: str) -> None:
    """Refuse KL to the clean run where the gradient is taken at the clean run: it is zero there.

    Raises:
        HeadcodesError: it is KL.
    """
    if metric == "kl":
        raise HeadcodesError(
            f"{method} takes its gradient at the clean run, where the metric must have one",
            "kl, which is at its best there: its gradient is 0",
            "Use logit-diff, prob-diff or nll, or a method that goes from corrupted to clean: eap-ig-inputs, patching.",
        )
