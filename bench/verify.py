"""Propose, then verify: what patching only the best-ranked heads costs and confirms (docs/results.md).

python bench/verify.py ioi,greater-than default,hybrid,mean-diff
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from headcodes import load_model, tasks
from headcodes.discovery import explain
from headcodes.evaluation.faithfulness import curve
from headcodes.interventions.patch import causal_truth
from headcodes.interventions.verify import verify
from headcodes.methods.inputs import Inputs
from headcodes.prompts.tokens import tokenize

Found = TypeVar("Found")

# Pairs that are patched, others for faithfulness, and others that the methods see.
N_PATCHED, N_FAITHFUL, N_PAIRS = 32, 16, 50
N_VERIFIED = 30
# A head that counts: this share of the clean logit difference.
SHARE = 0.05
N_RUNS = 3


def main(task_ids: list[str], method_ids: list[str]) -> None:
    """Print what patching costs, then for every method what it confirms and how faithful that circuit is."""
    model = load_model("smollm2-135m", dtype="float32")
    for task_id in task_ids:
        # Half as many again as are patched: only answered pairs are.
        sizes = [N_PATCHED + N_PATCHED // 2, N_FAITHFUL, N_PAIRS]
        pairs = tokenize(tasks.get(task_id).build(model.tokenizer, n=sum(sizes), seed=0), model.tokenizer)
        patched, apart, seen = (pairs.subset(range(sum(sizes[:i]), sum(sizes[: i + 1]))) for i in range(3))
        inputs = Inputs(model, seen)
        # As `discover` has them from the capture, so that verifying asks for none of it again.
        known = Inputs(model, patched).logit_differences
        whole_s, truth = timed(lambda tokens=patched: causal_truth(model, tokens, pairs=N_PATCHED, cache=False))
        shares = np.abs(truth.head_effects) / truth.clean_ld.mean()
        print(f"{task_id}: every head of {N_PATCHED} pairs {whole_s:.1f} s; {int((shares >= SHARE).sum())} heads count")
        for method in method_ids:
            scores = explain(inputs, method).head_scores
            order = np.argsort(-scores.ravel(), kind="stable")
            proposed = [divmod(int(i), model.n_heads) for i in order[:N_VERIFIED]]
            few_s, found = timed(
                lambda tokens=patched, heads=proposed, known=known: verify(
                    model, tokens, heads, pairs=N_PATCHED, known=known
                )
            )
            counting = {divmod(int(i), model.n_heads) for i in np.flatnonzero(shares >= SHARE)}
            confirmed = found.confirmed(SHARE)
            effects = np.zeros_like(scores)
            for head, effect in zip(found.heads, found.mean, strict=True):
                effects[head] = abs(effect)
            line = curve(model, apart, effects, sizes=[1, 2, 5, 10, 20, N_VERIFIED], n_random=0)
            print(
                f"{task_id} {method}: {few_s:.1f} s, {few_s / whole_s:.1%} of patching every head; "
                f"{len(counting & set(confirmed))} of {len(counting)} heads that count confirmed; faithfulness of the "
                "heads of largest effect among those patched "
                + ", ".join(f"{size}: {f:.2f}" for size, f in zip(line.sizes, line.faithfulness, strict=True)),
                flush=True,
            )


def timed(call: Callable[[], Found]) -> tuple[float, Found]:
    """Return the median seconds of a few calls, and what the last one returned."""
    seconds = []
    for _ in range(N_RUNS):
        start = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), found


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2].split(","))
