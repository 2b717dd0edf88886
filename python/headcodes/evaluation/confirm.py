"""From a proposal to a circuit: heads patched exactly in rank order, then judged on prompts that were held out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headcodes.circuit.circuit import Circuit
from headcodes.evaluation.faithfulness import behaviour, membership
from headcodes.graph import Part, head_name, part_name, split_slot
from headcodes.interventions.base_runs import Prepared
from headcodes.interventions.carried import carried_edges, composed_edges, edges_between
from headcodes.interventions.patch import answered
from headcodes.interventions.paths import PathEffects, path_effects
from headcodes.interventions.verify import AT_LEAST, SHARE, Verification, verify, verify_in_order
from headcodes.methods.attribution import robust
from headcodes.metrics import FEWEST_RESAMPLED, normalised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

    from headcodes.methods.findings import Findings
    from headcodes.methods.inputs import Inputs


# Pairs that are patched: enough for intervals of a tenth of the large effects (docs/recipe.md), no more than a third of
# those that the proposal saw, at least so many.
_MOST_PAIRS, _FEWEST_PAIRS = 32, 16
# Paths are looked for among the confirmed heads of largest effect, at most so many, as their number grows with the
# square of that of the heads; they are proposed on so many pairs, and patched on so many. A path is one of several ways
# that a head's effect goes, so it counts from a smaller share of the logit difference on.
_PATH_HEADS, _PROPOSING_PAIRS, _PATH_PAIRS = 16, 6, 10
_MOST_PATHS = 40
EDGE_SHARE = 0.01
# Pairs kept from proposal and patching, to judge the circuit on: a fifth, at most these.
_MOST_HELD_OUT = 16
# What the proposal costs a pair in forward passes: two, and one with its backward pass, which costs two more.
_FORWARDS = 5
# Patching may take this many times the proposal's work, where ten quiet heads in a row do not end it before.
_BUDGET = 10
# Without gradients the ranking is that much worse, and patching its best heads mends it.
_AT_LEAST_WITHOUT_GRADIENTS, _PAIRS_WITHOUT_GRADIENTS = 80, 12


def n_held_out(n_pairs: int) -> int:
    """Return how many pairs a circuit is judged on that it is not found on."""
    return min(_MOST_HELD_OUT, n_pairs // 5)


def confirm_heads(
    inputs: Inputs, findings: Findings, n_heads: int | None, seed: int, prepared: Prepared | None = None
) -> Verification:
    """Patch the best-ranked heads (and MLPs, where they are asked for) exactly, on pairs that are not held out.

    Args:
        n_heads: patch this many; None: in rank order until ten in a row are not confirmed (``verify_in_order``), for at
            most ten times the work of the proposal.
        prepared: see ``run_edited``; given to ``confirm_edges`` too, it saves time there.

    Raises:
        HeadcodesError: prompts of a pair differ in length, no pair is answered right, or no head has a score.
    """
    tokens = inputs.tokens.subset(range(inputs.n_proposing))
    clean_ld, corrupt_ld = (side[: inputs.n_proposing] for side in inputs.logit_differences)
    scores, parts = np.abs(findings.part_scores), findings.parts
    order = [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] > 0 or n_heads is not None]
    heads = [parts[i] for i in order]
    if n_heads is not None:
        some, known = heads[:n_heads], (clean_ld, corrupt_ld)
        return verify(inputs.model, tokens, some, pairs=_MOST_PAIRS, known=known, seed=seed, prepared=prepared)
    repairs = not findings.by_gradients
    pairs = _PAIRS_WITHOUT_GRADIENTS if repairs else max(_FEWEST_PAIRS, min(_MOST_PAIRS, len(tokens) // 3))
    return verify_in_order(
        inputs.model,
        tokens,
        heads,
        findings.part_effects[order],
        signed=findings.signed is not None,
        pairs=pairs,
        budget=float(_BUDGET * _FORWARDS * inputs.model.n_layers * sum(map(len, tokens.clean))),
        at_least=_AT_LEAST_WITHOUT_GRADIENTS if repairs else AT_LEAST,
        known=(clean_ld, corrupt_ld),
        seed=seed,
        prepared=prepared,
    )


def confirm_edges(
    inputs: Inputs, findings: Findings, verification: Verification, seed: int, prepared: Prepared | None = None
) -> PathEffects | None:
    """Patch paths between confirmed heads exactly, queries, keys and values apart, the most promising ones.

    They are looked for among the 16 confirmed heads of largest effect, and put in order by ``carried_edges`` where the
    method took gradients; else by how strongly two heads compose (``composed_edges``) times the expected effects of
    both; the 40 best are patched. A path is confirmed as a head is, from 1% of the clean logit difference on.

    Returns:
        Effects of the paths that were patched; None where no confirmed head can feed another.

    Raises:
        HeadcodesError: a family whose query, key and value projections are unknown, or too little memory for a backward
            pass.
    """
    model = inputs.model
    effect = dict(zip(verification.heads, np.abs(verification.expected).tolist(), strict=True))
    heads = sorted(verification.confirmed_heads, key=lambda head: -effect[head])[:_PATH_HEADS]
    if len({layer for layer, _ in heads}) < 2:
        return None
    tokens = inputs.tokens.subset(range(inputs.n_proposing))
    known = tuple(side[: inputs.n_proposing] for side in inputs.logit_differences)
    chosen, clean_ld, corrupt_ld, *_ = answered(
        model, tokens, min(_PATH_PAIRS, len(verification.effects)), (known[0], known[1])
    )
    prepared = Prepared() if prepared is None else prepared
    if findings.by_gradients:
        edges, products = edges_between(model, heads), None
        if findings.carried is not None:  # already, between the heads that the proposal has first
            column = {edge: place for place, edge in enumerate(findings.carried[0])}
            if all(edge in column for edge in edges):
                products = findings.carried[1][:, [column[edge] for edge in edges]]
        if products is None:
            some = chosen.subset(range(min(_PROPOSING_PAIRS, len(chosen))))
            products = carried_edges(model, some, heads, prepared)[1]
        scores = robust(torch.from_numpy(products)).numpy()
    else:
        edges, scores = composed_edges(model, heads)
        by_name = {head_name(*head): effect[head] for head in heads}
        scores *= [by_name[sender] * by_name[split_slot(receiver)[0]] for sender, receiver in edges]
    ranked = [edges[int(i)] for i in np.argsort(-scores, kind="stable") if scores[i] > 0]
    if not ranked:
        return None
    best, known = ranked[:_MOST_PATHS], (clean_ld, corrupt_ld)
    return path_effects(model, chosen, best, known=known, seed=seed, prepared=prepared)


def combined_scores(findings: Findings, verification: Verification) -> Float[np.ndarray, " n_part"]:
    """Return how much each of ``findings.parts`` matters, in logits and signed, from exact effects and the proposal.

    The proposal is scaled by least squares to the sizes of the exact effects of parts that were patched and not
    confirmed (of all that were patched, where these have none): parts that were not reached, whose scores are the
    scaled proposal, are more like these. A patched part's size is the plain mean of its exact effect's and of the
    scaled proposal, where the proposal was made from gradients (together they rank parts on other prompts better than
    either, docs/results.md); else its exact effect's.
    """
    scores: Float[np.ndarray, " n_part"] = findings.part_scores.copy()
    place = {part: i for i, part in enumerate(findings.parts)}
    index = [place[part] for part in verification.heads]
    exact, foretold = np.abs(verification.mean), np.abs(scores[index])
    fitted = ~np.isin(index, [place[part] for part in verification.confirmed()])
    fitted |= not exact[fitted] @ foretold[fitted] > 0
    square = float(foretold[fitted] @ foretold[fitted])
    slope = float(exact[fitted] @ foretold[fitted]) / square if square > 0 else 0.0
    scores *= slope
    sizes = (exact + slope * foretold) / 2 if findings.by_gradients else exact
    scores[index] = np.where(verification.mean < 0, -sizes, sizes)
    return scores


def edge_rows(paths: PathEffects | None) -> list[dict[str, Any]]:
    """Return one dict a path: from, to (with its slot), effect, low, high, and whether it is confirmed."""
    if paths is None:
        return []
    confirmed = set(paths.confirmed(EDGE_SHARE))
    return [{**row, "confirmed": (row["from"], row["to"]) in confirmed} for row in paths.as_rows()]


def confirmation(findings: Findings, verification: Verification) -> dict[str, Any]:
    """Return on how many pairs, by which rule and how far heads were patched, and what proposed the paths between them,
    as docs/result-json.md has it.

    ``unreached_share`` is the share of all scores that lies in parts that were not patched: what they could still hold.
    """
    scores = dict(zip(findings.parts, np.abs(findings.part_scores).tolist(), strict=True))
    reached, total = set(verification.heads), sum(scores.values())
    return {
        "n_pairs": len(verification.effects),
        "interval": interval_of(len(verification.effects)),
        "clean_logit_diff": float(verification.clean_ld.mean()),
        "least_share": SHARE,
        "stopped": verification.stopped,
        "paths_proposed_by": "gradients" if findings.by_gradients else "composition",
        "n_unreached": len(scores) - findings.n_left_out - len(reached),
        "unreached_share": max(0.0, 1 - sum(scores[part] for part in reached) / total) if total > 0 else 0.0,
    }


def interval_of(n_pairs: int) -> str:
    """Return what intervals over so many pairs are: "bootstrap", "t" (Student's) or "none"."""
    return "bootstrap" if n_pairs >= FEWEST_RESAMPLED else "t" if n_pairs > 1 else "none"


def found_exactly(findings: Findings, verification: Verification, paths: PathEffects | None) -> dict[str, Any]:
    """Return what exact patching found, as docs/result-json.md has it."""
    confirmed = [part_name(*part) for part in verification.confirmed()]
    return {
        "verification": verification.as_rows(),
        "confirmation": confirmation(findings, verification),
        "edges": edge_rows(paths),
        "codes_used": {name: findings.codes_used(name) for name in confirmed},
    }


def on_held_out(inputs: Inputs, parts: Sequence[Part]) -> dict[str, Any] | None:
    """Judge a circuit on the answered pairs that were held out; None where there are none.

    All other heads are replaced by their results on the corrupted prompt (``headcodes.evaluation.faithfulness``), and
    where the circuit was chosen among MLPs too, so are all other MLPs.

    Returns:
        ``n_pairs``; ``faithfulness`` and ``completeness``; and ``faithfulness_without_mlps``, every MLP's output being
        that on the corrupted prompt too: what the heads carry to the answer by themselves, as a share of the same range
        (None for models without MLPs, and where the circuit was chosen among them).

    Raises:
        HeadcodesError: no held-out pair is answered right, or the heads together change nothing there.
    """
    rows = range(inputs.n_proposing, len(inputs.tokens))
    if not rows:
        return None
    model, tokens = inputs.model, inputs.tokens.subset(rows)
    clean_ld, corrupt_ld = (side[inputs.n_proposing :] for side in inputs.logit_differences)
    chosen = answered(model, tokens, None, (clean_ld, corrupt_ld))[0]
    circuit = membership(model, parts)
    stays = np.zeros_like(circuit)
    stays[:, -1] = inputs.components == "heads"
    bare = inputs.components == "heads" and model.mlp(0) is not None
    means = behaviour(model, chosen, np.stack([stays, circuit | stays, ~circuit] + [circuit] * bare)).logit_diff
    shares = normalised(means, empty=2)
    alone = float(normalised(means, empty=1)[5]) if bare else None
    return {
        "n_pairs": len(chosen),
        "faithfulness": float(shares[3]),
        "completeness": float(shares[4]),
        "faithfulness_without_mlps": alone,
    }


def confirmed_circuit(
    findings: Findings, verification: Verification, paths: PathEffects | None, **about: Any
) -> Circuit:
    """Return the circuit of confirmed parts and paths, largest effect first; ``about`` are further fields of it.

    Scores of parts are ``combined_scores``; exact effects and estimates are in ``effects``.
    """
    n_layers, n_heads = findings.head_scores.shape
    names = [part_name(*part) for part in findings.parts]
    rows = sorted(verification.as_rows(), key=lambda row: -abs(row["effect"]))
    edges = sorted(edge_rows(paths), key=lambda row: -abs(row["effect"]))
    return Circuit(
        n_layers=n_layers,
        n_heads=n_heads,
        nodes=tuple(row["head"] for row in rows if row["confirmed"]),
        edges=tuple((row["from"], row["to"]) for row in edges if row["confirmed"]),
        edge_scores={(row["from"], row["to"]): row["effect"] for row in edges},
        node_scores=dict(zip(names, combined_scores(findings, verification).tolist(), strict=True)),
        effects={row["head"]: row for row in rows} | {f"{row['from']}->{row['to']}": row for row in edges},
        **about,
    )
