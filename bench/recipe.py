"""What each ingredient of `default` adds: AUC and average precision against the causal truth (docs/recipe.md).

python bench/recipe.py ioi,greater-than
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from headcodes import load_model, metrics, tasks
from headcodes.interventions.patch import causal_truth
from headcodes.methods import code_sets
from headcodes.methods.code_flip import flip_shares
from headcodes.methods.inputs import Inputs
from headcodes.prompts.tokens import tokenize

SEEDS = range(5)
# Prompts that make the truth, and others that the methods see.
N_TRUTH, N_PAIRS = 50, 250


def main(task_ids: list[str]) -> None:
    """Print one block of rows a task: mean and spread over seeds of the autoencoder."""
    exact = load_model("smollm2-135m", dtype="float32")
    model = load_model("smollm2-135m")
    for task_id in task_ids:
        task = tasks.get(task_id)
        truth_tokens = tokenize(task.build(exact.tokenizer, n=N_TRUTH, seed=0), exact.tokenizer)
        labels = causal_truth(exact, truth_tokens, pairs=32).labels(20)
        tokens = tokenize(task.build(model.tokenizer, n=N_TRUTH + N_PAIRS, seed=0)[N_TRUTH:], model.tokenizer)
        inputs = Inputs(model, tokens)
        to_answer, to_stream = (part.numpy() for part in inputs.changes().values())
        mean = inputs.activations.z[:N_PAIRS].mean(0) - inputs.activations.z[N_PAIRS:].mean(0)
        mean_diff = torch.einsum("cd,cdm->cm", mean, inputs.activations.W_O.float()).norm(dim=-1).numpy()
        rows: dict[str, list[tuple[float, float]]] = {}
        for findings in code_sets.coded("contrast", inputs, "node", SEEDS):
            flips = flip_shares(findings, findings.codes).reshape(to_stream.shape)
            for name, scores in {
                "mean-diff": mean_diff.reshape(to_stream.shape),
                "unique codes, as published": findings.head_scores,
                "flips alone": flips,
                "to the answer": to_answer,
                "to the stream, no codes": to_stream,
                "to the stream x flips": to_stream * flips,
                "answer + stream, no codes": unit(to_answer) + unit(to_stream),
                "contrast": unit(to_answer) + unit(to_stream * flips),
            }.items():
                judged = metrics.roc_auc(scores, labels), metrics.average_precision(scores, labels)
                rows.setdefault(name, []).append(judged)
        for name, found in rows.items():
            auc, precision = np.array(found).T
            print(f"{task_id:<18} {name:<28} {auc.mean():.3f} +- {auc.std():.3f}  {precision.mean():.3f}", flush=True)


def unit(scores: np.ndarray) -> np.ndarray:
    """Scores in standard deviations over heads."""
    return scores / scores.std()


if __name__ == "__main__":
    main(sys.argv[1].split(",") if len(sys.argv) > 1 else ["ioi", "greater-than"])
