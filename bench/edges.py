"""Scores of edges between heads against exact path patching, on SmolLM2 (docs/results.md).

python bench/edges.py ioi,greater-than,induction [--heads 50] [--pairs 8] [--proposing 16]

The truth: path effects (query, key and value changed together) of every two of the heads of largest causal effect that
lie in different layers, the 50 of largest |mean| counting as edges. Scores are made from other prompts than the truth.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from headcodes import load_model, metrics, tasks
from headcodes.graph import head_name
from headcodes.interventions.carried import carried_edges
from headcodes.interventions.patch import causal_truth
from headcodes.interventions.paths import path_effects
from headcodes.methods import get
from headcodes.methods.inputs import Inputs
from headcodes.prompts.tokens import tokenize

TRUTH_SEED, N_EDGES = 10_000, 50


def main(task_ids: list[str], n_heads: int, n_pairs: int, n_proposing: int) -> None:
    """Print AUC and AP of every way of scoring pairs, task by task."""
    model = load_model("smollm2-135m", dtype="float32")
    for task_id in task_ids:
        task = tasks.get(task_id)
        tokens = tokenize(task.build(model.tokenizer, n=64, seed=TRUTH_SEED), model.tokenizer)
        truth = causal_truth(model, tokens, pairs=32)
        order = np.argsort(-np.abs(truth.head_effects).ravel(), kind="stable")[:n_heads]
        heads = sorted(divmod(int(i), model.n_heads) for i in order)
        later = [(a, b) for a in heads for b in heads if a[0] < b[0]]
        edges = [(head_name(*a), head_name(*b)) for a, b in later]
        began = time.perf_counter()
        exact = path_effects(model, tokens, edges, pairs=n_pairs)
        took = time.perf_counter() - began
        print(f"{task_id}: {len(edges)} paths exactly, {n_pairs} pairs: {took:.1f} s", flush=True)
        magnitude = np.abs(exact.mean)
        labels = np.zeros(len(edges), dtype=bool)
        labels[np.argsort(-magnitude, kind="stable")[:N_EDGES]] = True

        other = tokenize(task.build(model.tokenizer, n=n_proposing, seed=0), model.tokenizer)
        began = time.perf_counter()
        names, scores = carried_edges(model, other, heads)
        took = time.perf_counter() - began
        limit = np.quantile(np.abs(scores), 0.9, axis=0)
        clipped = np.clip(scores, -limit, limit)
        place = {name: column for column, name in enumerate(names)}

        def by_pair(values: np.ndarray, place: dict[tuple[str, str], int] = place, edges: list = edges) -> np.ndarray:
            return np.array([sum(values[place[s, f"{t}<{slot}>"]] for slot in "qkv") for s, t in edges])

        def robust(values: np.ndarray) -> np.ndarray:
            return np.abs(values.mean(axis=0)) + np.abs(values).mean(axis=0)

        together = np.stack([by_pair(row) for row in scores])
        together_clipped = np.stack([by_pair(row) for row in clipped])
        eap = get("eap").find(Inputs(model, other), "edge", 0)
        default = get("default").find(Inputs(model, other), "node", 0).head_scores
        pairs_of = dict(zip(edges, later, strict=True))
        flat = {head: head[0] * model.n_heads + head[1] for head in heads}
        assert eap.pair_scores is not None
        candidates = {
            "random": np.random.default_rng(0).random(len(edges)),
            "product of default's node scores": np.array([default[a] * default[b] for a, b in later]),
            "eap, q + k + v": np.array([eap.pair_scores[flat[a], flat[b]] for a, b in pairs_of.values()]),
            "carried, |mean| of the sum": np.abs(together.mean(axis=0)),
            "carried, |mean| + mean ||": robust(together),
            "carried, clipped, |mean| + mean ||": robust(together_clipped),
            "carried, sum of |slots|": by_pair(robust(scores)),
            "exact, first half of the truth's pairs": np.abs(exact.effects[: n_pairs // 2].mean(axis=0)),
        }
        for name, values in candidates.items():
            auc, ap = metrics.roc_auc(values, labels), metrics.average_precision(values, labels)
            print(f"  {name:<42} {auc:.3f} / {ap:.2f}", flush=True)
        print(f"  carried edges took {took:.1f} s for {n_proposing} pairs and {n_heads} heads", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="?", default="ioi,greater-than,induction")
    parser.add_argument("--heads", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--proposing", type=int, default=16)
    asked = parser.parse_args()
    main(asked.tasks.split(","), asked.heads, asked.pairs, asked.proposing)
