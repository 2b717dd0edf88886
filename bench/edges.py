"""Scores of edges between heads against exact path patching, on SmolLM2 (docs/results.md).

python bench/edges.py ioi,greater-than,induction [--heads 50] [--pairs 6] [--proposing 16] [--apart] [--seed 0]

The truth: path effects (query, key and value changed together, or ``--apart``) of every two of the heads of largest
causal effect that lie in different layers, the 50 of largest |mean| counting as edges. Scores are made from other
prompts than the truth.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from headcodes import load_model, metrics, tasks
from headcodes.graph import parse_head, split_slot
from headcodes.interventions.carried import carried_edges, composed_edges
from headcodes.methods import get
from headcodes.methods.attribution import robust
from headcodes.methods.inputs import Inputs
from headcodes.prompts.tokens import tokenize
from truth_files import path_truth

N_EDGES = 50


def main(task_ids: list[str], n_heads: int, n_pairs: int, n_proposing: int, apart: bool, seed: int) -> None:
    """Print AUC and AP of every way of scoring pairs, task by task, and their means."""
    model = load_model("smollm2-135m", dtype="float32")
    found: dict[str, list[tuple[float, float]]] = {}
    for task_id in task_ids:
        heads, edges, exact = path_truth(model, task_id, n_heads, n_pairs, apart)
        labels = metrics.largest(exact.mean(axis=0), N_EDGES)
        other = tokenize(tasks.get(task_id).build(model.tokenizer, n=n_proposing, seed=seed), model.tokenizer)
        began = time.process_time()
        names, products = carried_edges(model, other, heads)
        took = time.process_time() - began
        composed = composed_edges(model, heads)[1]
        inputs = Inputs(model, other)
        eap = get("eap").find(inputs, "edge", seed)
        scores = get("attribution").find(inputs, "node", seed).head_scores
        paper = get("paper").find(inputs, "edge", seed)
        coded = get("contrast").find(inputs, "node", seed)
        assert eap.edges is not None
        assert coded.codes is not None
        assert paper.pair_scores is not None
        number = {name: place for place, name in enumerate(model.components)}
        rows = [(source, *split_slot(target)) for source, target in edges]
        ends = [(number[source], number[target]) for source, target, _ in rows]
        node = {name: scores[parse_head(name)] for name in model.components}
        place = {name: column for column, name in enumerate(names)}
        columns = [[place[s, f"{t}<{slot}>"] for slot in slots or "qkv"] for s, t, slots in rows]
        source_row = {name: row for row, name in enumerate(eap.edges.sources)}
        column_of = {name: column for column, name in enumerate(eap.edges.destinations)}
        product = np.array([node[s] * node[t] for s, t, _ in rows])
        carried = np.stack([products[:, its].sum(axis=1) for its in columns], axis=1)
        candidates = {
            "random": np.random.default_rng(0).random(len(edges)),
            "counts of code pairs, paper": np.array([paper.pair_scores[end] for end in ends]),
            "mutual information of codes": np.array([shared(coded.codes[:, a], coded.codes[:, b]) for a, b in ends]),
            "product of node scores": product,
            "composition x node scores": product * [composed[its].max() for its in columns],
            "eap": np.array(
                [
                    sum(abs(eap.edges.scores[source_row[s], column_of[f"{t}<{slot}>"]]) for slot in slots or "qkv")
                    for s, t, slots in rows
                ]
            ),
            "carried, |mean|": np.abs(carried.mean(axis=0)),
            "carried": robust(torch.from_numpy(carried)).numpy(),
            "exact, half of the truth's pairs": np.abs(exact[: n_pairs // 2].mean(axis=0)),
        }
        print(f"{task_id}: {len(edges)} paths; carried edges took {took:.1f} s for {n_proposing} pairs", flush=True)
        for name, values in candidates.items():
            both = metrics.roc_auc(values, labels), metrics.average_precision(values, labels)
            found.setdefault(name, []).append(both)
            print(f"  {name:<36} {both[0]:.3f} / {both[1]:.2f}", flush=True)
    print(f"mean of {', '.join(task_ids)}")
    for name, each in found.items():
        print(f"  {name:<36} {np.mean(each, axis=0)[0]:.3f} / {np.mean(each, axis=0)[1]:.3f}")


def shared(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mutual information of two heads' codes over prompts, in nats."""
    n = len(a)
    _, joint = np.unique(np.stack([a, b]), axis=1, return_counts=True)
    halves = [np.unique(side, return_counts=True)[1] / n for side in (a, b)]
    entropies = [-(share * np.log(share)).sum() for share in (*halves, joint / n)]
    return float(entropies[0] + entropies[1] - entropies[2])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="?", default="ioi,greater-than,induction")
    parser.add_argument("--heads", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--proposing", type=int, default=16)
    parser.add_argument("--apart", action="store_true", help="query, key and value each by itself")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts that propose, and of the methods")
    asked = parser.parse_args()
    main(asked.tasks.split(","), asked.heads, asked.pairs, asked.proposing, asked.apart, asked.seed)
