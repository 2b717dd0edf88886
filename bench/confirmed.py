"""What `default` proposes and confirms on SmolLM2, against exact patching on other prompts (docs/results.md).

python bench/confirmed.py ioi,greater-than,... [seed,seed] [--only scores|confirm]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from headcodes import Model, load_model, methods, metrics, tasks
from headcodes.comparison.rows import half_width
from headcodes.evaluation.confirm import (
    combined_scores,
    confirm_edges,
    confirm_heads,
    edge_rows,
    n_held_out,
    on_held_out,
)
from headcodes.interventions.base_runs import Prepared
from headcodes.interventions.verify import SHARE
from headcodes.methods.inputs import Inputs
from headcodes.prompts.tokens import TokenPairs, tokenize
from truth_files import head_truth

N_PAIRS = 50
METHODS = ("eap", "attribution", "hybrid", "contrast")


@dataclass
class Truth:
    """Effects [n_pairs, n_head] of patching every head on other prompts than any that are proposed from."""

    effects: np.ndarray
    clean_ld: np.ndarray

    def __post_init__(self) -> None:
        self.mean, self.least = self.effects.mean(axis=0), SHARE * float(self.clean_ld.mean())
        low, high = metrics.mean_intervals(self.effects)
        self.counts, self.sure = np.abs(self.mean) >= self.least, (low > 0) | (high < 0)
        self.labels = metrics.largest(self.mean, 20)

    def ceiling(self) -> str:
        """Say what half of the truth's own pairs tell of the other half, mean of 50 ways to halve them."""
        draw, found = np.random.default_rng(0), []
        for _ in range(50):
            order = np.split(draw.permutation(len(self.effects)), 2)
            half, other = (np.abs(self.effects[rows].mean(axis=0)) for rows in order)
            again = ((half >= self.least) & (other >= self.least)).sum() / (other >= self.least).sum()
            found.append((*both(half, metrics.largest(other, 20)), again))
        auc, ap, again = np.mean(found, axis=0)
        return f"{auc:.3f} / {ap:.2f}, {again:.2f} of the heads that count in one count in the other"


def main(task_ids: list[str], seeds: list[int], only: str | None) -> None:
    """Print, for every task and seed, how well heads are ranked, which are confirmed, and process seconds."""
    model = load_model("smollm2-135m", dtype="float32")
    ranked: dict[str, list[list[tuple[float, float]]]] = {}
    for task_id in task_ids:
        truth = Truth(*head_truth(model, task_id))
        print(f"{task_id}: {truth.counts.sum()} heads count, {(truth.counts & truth.sure).sum()} surely of one sign")
        print(f"  half of the truth against the other: {truth.ceiling()}", flush=True)
        by_method: dict[str, list[tuple[float, float]]] = {}
        for seed in seeds:
            tokens = tokenize(tasks.get(task_id).build(model.tokenizer, n=N_PAIRS, seed=seed), model.tokenizer)
            took: dict[str, float] = {}
            for name in {"scores": METHODS, "confirm": ()}.get(only or "", METHODS[:2]):
                inputs = Inputs(model, tokens)
                _ = inputs.task_check
                with timed(took, name):
                    found = methods.get(name).find(inputs, seed=seed)
                by_method.setdefault(name, []).append(both(found.head_scores, truth.labels))
            if only != "scores":
                combined = confirm(model, tokens, seed, truth, took)
                by_method.setdefault("with exact effects", []).append(both(combined, truth.labels))
        for name, rows in by_method.items():
            ranked.setdefault(name, []).append(rows)
            print(f"  {name:<20} {with_interval(rows)}", flush=True)
    print(f"mean of {', '.join(task_ids)}")
    for name, by_task in ranked.items():
        print(f"  {name:<20} {with_interval(np.mean(by_task, axis=0))}")


def confirm(model: Model, tokens: TokenPairs, seed: int, truth: Truth, took: dict[str, float]) -> np.ndarray:
    """Propose, patch and judge; print what came of it, and return the sizes of circuit.json's scores of heads."""
    inputs = Inputs(model, tokens, held_out=n_held_out(N_PAIRS))
    with timed(took, "capture"):
        _ = inputs.task_check
    with timed(took, "propose"):
        found = methods.get("attribution").find(inputs, seed=seed)
    with timed(took, "patch"):
        prepared = Prepared()
        checked = confirm_heads(inputs, found, None, seed, prepared)
    with timed(took, "edges"):
        edges = edge_rows(confirm_edges(inputs, found, checked, seed, prepared))
    with timed(took, "judge"):
        held = on_held_out(inputs, checked.confirmed())
    numbers = [layer * model.n_heads + head for layer, head in checked.heads]
    confirmed, one_sign, exact = (np.zeros(len(truth.mean)) for _ in range(3))
    confirmed[numbers] = [row["confirmed"] for row in checked.as_rows()]
    one_sign[numbers] = (checked.low > 0) | (checked.high < 0)
    exact[numbers] = checked.mean
    inside = confirmed > 0
    # On other prompts a head confirmed with a sign has not surely the other one, and changes single answers as much.
    turned = inside & (one_sign > 0) & truth.sure & (exact * truth.mean < 0)
    small = inside & (np.abs(truth.effects).mean(axis=0) < truth.least / 2)
    recall, of_sure = (f"{inside[some].mean():.3f}" for some in (truth.counts, truth.counts & truth.sure))
    print(
        f"  seed {seed}: {inside.sum()} confirmed ({int((confirmed * one_sign).sum())} of one sign) of {len(numbers)}"
        f" patched on {len(checked.effects)} pairs ({checked.stopped}); recall {recall}, of sure ones {of_sure};"
        f" {turned.sum()} of other sign, {small.sum()} of less than half the size on other prompts;"
        f" {sum(row['confirmed'] for row in edges)} of {len(edges)} paths"
    )
    if held is not None:
        print("    " + ", ".join(f"{what} {value:.2f}" for what, value in held.items() if value is not None))
    print("    seconds " + ", ".join(f"{what} {seconds:.1f}" for what, seconds in took.items()), flush=True)
    combined: np.ndarray = np.abs(combined_scores(found, checked))
    return combined


@contextmanager
def timed(took: dict[str, float], what: str) -> Iterator[None]:
    """Note the process seconds of what is done inside."""
    start = time.process_time()
    yield
    took[what] = time.process_time() - start


def both(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return ROC AUC and average precision."""
    flat = np.asarray(scores).ravel()
    return metrics.roc_auc(flat, labels), metrics.average_precision(flat, labels)


def with_interval(rows: object) -> str:
    """Return means of AUC and AP over seeds, each with half of its 95% t interval."""
    values = np.asarray(rows, dtype=float)
    halves = [half_width(column) if len(values) > 1 else 0.0 for column in values.T]
    return " / ".join(f"{mean:.4f} ±{half:.3f}" for mean, half in zip(values.mean(axis=0), halves, strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="?", default="ioi,greater-than,gendered-pronoun,capital-country,subject-verb")
    parser.add_argument("seeds", nargs="?", default="0,1,2,3,4")
    parser.add_argument("--only", choices=("scores", "confirm"), help="rank heads by every method; or patch alone")
    asked = parser.parse_args()
    main(asked.tasks.split(","), [int(seed) for seed in asked.seeds.split(",")], asked.only)
