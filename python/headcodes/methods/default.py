"""The default: the best method that this model, this machine and these prompts allow."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.interventions.gradients import GradientError
from headcodes.methods import attribution, code_sets, contrast
from headcodes.methods.findings import Findings

if TYPE_CHECKING:
    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs


def score(name: str, found: list[Findings], inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
    """Run ``attribution`` where gradients can be had, else ``contrast``; the findings name which, and why.

    Warns:
        HeadcodesWarning: gradients were not forbidden, and still cannot be had.
    """
    reason = None
    if not inputs.gradient:
        reason = "gradients were not asked for"
    else:
        try:
            found = attribution.score("attribution", found, inputs, level, seeds)
        except GradientError as error:
            reason = error.got
        except torch.OutOfMemoryError:
            reason = f"a backward pass does not fit the memory of {inputs.model.device}"
    if reason is not None:
        if inputs.metric is not None:
            raise HeadcodesError(
                "a metric must have gradients, else default stands for contrast, which takes none",
                f"{inputs.metric}: {reason}",
                "Leave --metric out, or use --method patching.",
            )
        if inputs.gradient:
            warnings.warn(
                f"default stands for contrast, which ranks heads less well than attribution: {reason}",
                HeadcodesWarning,
                stacklevel=2,
            )
        found = contrast.score("contrast", code_sets.coded("contrast", inputs, level, seeds), inputs, level, seeds)
    for findings in found:
        findings.method_used = "attribution" if reason is None else "contrast"
        findings.fallback = reason
    return found
