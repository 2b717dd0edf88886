"""Methods against the causal truth of SmolLM2, seed by seed, on the same prompts (docs/results.md).

python bench/quality.py ioi,greater-than:range,ioi-frames default,mean-diff,paper-scaled,paper [--pairs 50]

A task is a built-in one, one with another of its negatives (``task:negative``), or one in other frames (frames.py).
"""

from __future__ import annotations

import argparse

import numpy as np

from frames import FRAMES
from headcodes import load_model, metrics, tasks
from headcodes.discovery import explain
from headcodes.interventions.patch import causal_truth
from headcodes.methods.inputs import Inputs
from headcodes.prompts.tokens import tokenize

SEEDS = range(5)
# Prompts that make the truth, and others that the methods see.
N_TRUTH = 50
N_RANKED = 7


def main(task_ids: list[str], method_ids: list[str], n_pairs: int) -> None:
    """Print, for every task and method, ranks of the heads of largest effect a seed, then the mean over seeds."""
    exact = load_model("smollm2-135m", dtype="float32")
    model = load_model("smollm2-135m")
    for task_id in task_ids:
        name, _, negative = task_id.partition(":")
        task = FRAMES.get(name) or tasks.get(name)
        pairs = task.build(model.tokenizer, n=N_TRUTH + n_pairs, seed=0, negative=negative or None)
        truth = causal_truth(exact, tokenize(pairs[:N_TRUTH], exact.tokenizer), pairs=32)
        labels, largest = truth.labels(20), [head for head, _ in truth.largest(N_RANKED)]
        print(
            f"{task_id}: {truth.n_answered} of {truth.n_given} answered, logit difference {truth.clean_ld.mean():.2f} "
            f"clean, {truth.corrupt_ld.mean():.2f} corrupted; largest effects",
            *(f"{head} {effect:+.2f}" for head, effect in truth.largest(N_RANKED)),
            flush=True,
        )
        inputs = Inputs(model, tokenize(pairs[N_TRUTH:], model.tokenizer))
        for method in method_ids:
            judged = []
            for seed in SEEDS:
                result = explain(inputs, method, seed=seed)
                order = np.argsort(-result.head_scores.ravel(), kind="stable")
                ranks = [1 + int(np.flatnonzero(order == result.components.index(head))[0]) for head in largest]
                judged.append(
                    (
                        metrics.roc_auc(result.head_scores, labels),
                        metrics.average_precision(result.head_scores, labels),
                    )
                )
                print(f"  {method} seed {seed}: ranks {ranks}", flush=True)
            auc, precision = np.array(judged).T
            print(
                f"{task_id} {method}: AUC {auc.mean():.3f} +- {auc.std():.3f}  AP {precision.mean():.3f} +- "
                f"{precision.std():.3f}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tasks")
    parser.add_argument("methods")
    parser.add_argument("--pairs", type=int, default=250)
    asked = parser.parse_args()
    main(asked.tasks.split(","), asked.methods.split(","), asked.pairs)
