"""What `default` proposes and confirms on SmolLM2, against exact patching on other prompts (docs/results.md).

python bench/confirmed.py ioi,greater-than,docstring,induction [seed,seed]
"""

from __future__ import annotations

import sys
import time

import numpy as np

from headcodes import load_model, methods, metrics, tasks
from headcodes.comparison.judge import TRUTH_SEED
from headcodes.evaluation.confirm import confirm_heads, confirmation, expected_effects, n_held_out
from headcodes.interventions.patch import causal_truth
from headcodes.interventions.verify import SHARE
from headcodes.methods.inputs import Inputs
from headcodes.prompts.tokens import tokenize

N_PAIRS, N_TRUTH = 50, 32


def main(task_ids: list[str], seeds: list[int]) -> None:
    """Print, for every task and seed, how well heads are ranked, which are confirmed, and process seconds."""
    model = load_model("smollm2-135m", dtype="float32")
    for task_id in task_ids:
        task = tasks.get(task_id)
        others = tokenize(task.build(model.tokenizer, n=2 * N_TRUTH, seed=TRUTH_SEED), model.tokenizer)
        truth = causal_truth(model, others, pairs=N_TRUTH)
        labels, effects = truth.labels(20), np.abs(truth.head_effects)
        # The ceiling that prompts allow: half of the truth's own pairs judged by the other half.
        halves = truth.per_pair_head_effects[::2].mean(0), truth.per_pair_head_effects[1::2].mean(0)
        best = metrics.largest(halves[1].reshape(effects.shape), 20)
        ceiling = both(np.abs(halves[0]).reshape(effects.shape), best)
        counting = effects >= SHARE * truth.clean_ld.mean()
        print(
            f"{task_id}: {int(counting.sum())} heads count; half of the truth against the other {ceiling}", flush=True
        )
        for seed in seeds:
            inputs = Inputs(model, tokenize(task.build(model.tokenizer, n=N_PAIRS, seed=seed), model.tokenizer))
            inputs.held_out = n_held_out(N_PAIRS)
            _ = inputs.task_check
            start = time.process_time()
            found = methods.get("attribution").find(inputs, seed=seed)
            proposed_s = time.process_time() - start
            start = time.process_time()
            checked = confirm_heads(inputs, found, None, seed)
            verified_s = time.process_time() - start
            assert found.signed is not None
            eap, expected = np.abs(found.signed), np.abs(expected_effects(found, checked)).reshape(effects.shape)
            confirmed = np.zeros_like(counting)
            for head in checked.confirmed():
                confirmed[head] = True
            # On other prompts a confirmed head's effect has the same sign, or the confirmation was false.
            signs = {head: checked.mean[checked.heads.index(head)] for head in checked.confirmed()}
            turned = sum(truth.head_effects[head] * mean < 0 for head, mean in signs.items())
            small = sum(effects[head] < SHARE / 2 * truth.clean_ld.mean() for head in signs)
            about = confirmation(found, checked)
            ranked = f"eap {both(eap, labels)}, attribution {both(found.head_scores, labels)}, patched too"
            recalled = f"{int((confirmed & counting).sum())} of {int(counting.sum())} that count"
            print(f"{task_id} seed {seed}: {ranked} {both(expected, labels)}")
            print(
                f"  confirmed {len(signs)} of {len(checked.heads)} patched ({about['stopped']}): {recalled}; on other"
                f" prompts {turned} of other sign, {small} below half the share"
            )
            print(
                f"  seconds {proposed_s:.1f} to propose, {verified_s:.1f} to patch {about['n_pairs']} pairs", flush=True
            )


def both(scores: np.ndarray, labels: np.ndarray) -> str:
    """Return ROC AUC and average precision."""
    return f"{metrics.roc_auc(scores, labels):.3f} / {metrics.average_precision(scores, labels):.2f}"


if __name__ == "__main__":
    main(sys.argv[1].split(","), [int(seed) for seed in (sys.argv[2] if len(sys.argv) > 2 else "0").split(",")])
