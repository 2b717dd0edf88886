"""Contrast: how a head's output differs between the two prompts of a pair, weighed by the answer and by the stream.

No gradient and no ablation. While some of the pairs are captured, it is measured for every head how its output
differs between the two prompts of a pair, position by position. docs/recipe.md has what each ingredient adds.
``default`` stands for it where gradients cannot be had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headcodes.methods.code_flip import flip_shares
from headcodes.methods.findings import Findings
from headcodes.methods.pairs import propose_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs


def score(name: str, found: list[Findings], inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
    """Score a head by the change it makes to the answer plus the change it makes to the stream, each in standard
    deviations over heads.

    To the answer: the mean over pairs of |(z_clean - z_corrupt) . W_O . (right less wrong unembedding)| at the last
    position, the final norm held at the clean prompt's scale (direct logit attribution of the difference; left out
    where the model has no known final norm). To the stream: the mean over pairs of
    sum over positions of ||(z_clean - z_corrupt) . W_O||^2 / ||residual stream||^2, from the first changed token on,
    times the share of pairs in which the head's code flips. Relative to the stream, since every reader norms what it
    reads.

    MLPs, where they are asked for, likewise, in standard deviations over heads. Codes are those of the recipe of this
    name (``headcodes.codes.recipes``). Pairs of heads are scored by ``propose_pairs``. Prompts of
    different length are compared from their ends, back to where they part.
    """
    with found[0].timed("capture"):
        changes = inputs.changes()
    to_answer, to_stream = (changes[name].numpy() for name in ("to_answer", "to_stream"))
    n_heads = inputs.model.n_heads
    for findings in found:
        assert findings.codes is not None
        flips = flip_shares(findings, findings.codes).reshape(-1, n_heads)
        if findings.mlp_codes is not None:
            flips = np.concatenate([flips, flip_shares(findings, findings.mlp_codes)[:, None]], axis=1)
        scores = np.zeros(flips.shape)
        for part in (to_answer, to_stream * flips):
            deviation = part[:, :n_heads].std()
            scores += part / deviation if deviation > 0 else 0.0
        findings.head_scores = scores[:, :n_heads]
        if inputs.with_mlps:
            findings.set_mlps(scores[:, -1])
        if level == "edge":
            propose_pairs(findings, inputs)
    return found
