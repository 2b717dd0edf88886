"""Exact effects on SmolLM2 that benches judge by, kept under build/truths: they take minutes and outlast edits of code.

Delete the folder when patching itself changes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headcodes import Model, tasks
from headcodes.comparison.judge import TRUTH_SEED
from headcodes.interventions.carried import edges_between
from headcodes.interventions.patch import answered, causal_truth
from headcodes.interventions.paths import path_effects
from headcodes.prompts.tokens import TokenPairs, tokenize

FOLDER = Path("build/truths")
N_PAIRS = 32


def others(model: Model, task_id: str) -> TokenPairs:
    """Return the prompts that truths are found on: no proposal sees them."""
    task = tasks.get(task_id)
    return tokenize(task.build(model.tokenizer, n=2 * N_PAIRS, seed=TRUTH_SEED), model.tokenizer)


def head_truth(model: Model, task_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Return effects [n_pairs, n_head] of patching every head exactly, and clean logit differences [n_pairs]."""
    path = FOLDER / f"truth-{task_id}.npz"
    if not path.exists():
        truth = causal_truth(model, others(model, task_id), pairs=N_PAIRS)
        FOLDER.mkdir(parents=True, exist_ok=True)
        np.savez(path, effects=truth.per_pair_head_effects, clean=truth.clean_ld)
    kept = np.load(path)
    return kept["effects"], kept["clean"]


def path_truth(
    model: Model, task_id: str, n_heads: int, n_pairs: int, apart: bool
) -> tuple[list[tuple[int, int]], list[tuple[str, str]], np.ndarray]:
    """Return the heads of largest effect, all paths between two of them that lie in different layers, and the paths'
    exact effects [n_pairs, n_path]: query, key and value together, or ``apart``."""
    order = np.argsort(-np.abs(head_truth(model, task_id)[0].mean(axis=0)), kind="stable")[:n_heads]
    heads = sorted(divmod(int(i), model.n_heads) for i in order)
    edges = edges_between(model, heads, apart)
    chosen, clean_ld, corrupt_ld, *_ = answered(model, others(model, task_id), n_pairs)
    rows = []
    for index in range(n_pairs):
        path = FOLDER / f"paths-{'apart' if apart else 'both'}-{n_heads}-{task_id}-{index}.npz"
        if not path.exists():
            known = clean_ld[[index]], corrupt_ld[[index]]
            np.savez(path, effects=path_effects(model, chosen.subset([index]), edges, known=known).effects[0])
        rows.append(np.load(path)["effects"])
    return heads, edges, np.stack(rows)
