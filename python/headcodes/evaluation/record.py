"""What an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate_circuit`` found. Everything that could not be judged is None, with the reason in
    ``notes``.

    Attributes:
        circuit: Model, task, method and size of what was judged.
        truth: Name, source and size of what it was judged against; for the causal truth also logit
            differences, number of answered pairs, largest effects, and the effects of all heads, layer-major, and
            of all MLPs where they were patched too.
        ranking: How well the head scores rank the truth: roc_auc, roc_auc_pessimistic, average_precision,
            at_k (cut after as many heads as the truth has), spearman with |effect|, pair_auc; against a
            causal truth, roc_auc and average_precision come with bootstrap intervals over its prompts under
            ``intervals``.
        membership: The chosen heads themselves against the truth: precision, recall, f1, tpr_tnr_harmonic.
        components: Heads and MLPs together against a causal truth that holds both: roc_auc, average_precision and
            spearman with |effect|, the truth being as many components of largest |effect| as it has heads, and, where
            the circuit has chosen some of the MLPs, ``membership`` of its nodes. None where it says nothing of MLPs.
        paths: Against exact path patching between the heads of largest effect (``evaluation.paths.judge_paths``), where
            that was asked for.
        faithfulness: Of the chosen heads (``Faithfulness.as_dict``), and MLPs, where the circuit chose among them.
        curve: Over circuit sizes with a random band (``FaithfulnessCurve.as_dict``).
        areas: CPR and CMD over shares of the heads, and MLPs where the circuit chose among them (``head_cpr_cmd``).
        edge_areas: CPR and CMD over shares of the edges (``edge_cpr_cmd``), MIB's own, of a circuit that scores edges
            beyond pairs of heads.
        notes: What is missing, and why.
        whole_answers: How the model answers as whole sequences, where that was asked for: ``share_right`` of the
            ``n_pairs`` prompts, and by how much the right answers are likelier (``log_ratio``, mean, in nats).
    """

    circuit: dict[str, Any]
    truth: dict[str, Any] | None
    ranking: dict[str, Any] | None
    membership: dict[str, Any] | None
    components: dict[str, Any] | None
    paths: dict[str, Any] | None
    faithfulness: dict[str, Any] | None
    curve: dict[str, Any] | None
    areas: dict[str, Any] | None
    edge_areas: dict[str, Any] | None
    notes: list[str]
    whole_answers: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"schema": SCHEMA, "kind": "evaluation", **vars(self)}

    def as_text(self) -> str:
        """Return a few lines for a terminal."""
        about = self.circuit
        size = f"{about['n_heads_in_circuit']} heads"
        lines = [f"{about['method'] or 'circuit'}: {size} of {about['model']} on {about['task']}"]
        if self.whole_answers:
            found = self.whole_answers
            likelier = f"{found['share_right']:.1%} of {found['n_pairs']}, by {found['log_ratio']:+.2f} nats"
            lines.append(f"whole answers: the right ones likelier in {likelier}")
        if self.truth and self.membership:
            truth, found = self.truth, self.membership
            lines.append(f"truth {truth['name']}: {truth['n_heads_in_circuit']} heads")
            lines.append(
                f"  chosen heads    precision {found['precision']:.3f}  recall {found['recall']:.3f}"
                f"  F1 {found['f1']:.3f}"
            )
        if self.ranking:
            rank = self.ranking
            lines.append(
                f"  ranking         ROC AUC {rank['roc_auc']:.3f} (pessimistic {rank['roc_auc_pessimistic']:.3f})"
                f"  average precision {rank['average_precision']:.3f}"
            )
            for name, interval in (rank["intervals"] or {}).items():
                lines.append(f"    {name} in {interval['low']:.3f} .. {interval['high']:.3f} (95% over prompts)")
            if rank["spearman"] is not None:
                lines.append(f"  rank correlation with |effect| {rank['spearman']:.3f}")
            if rank["pair_auc"] is not None:
                lines.append(f"  pairs           ROC AUC {rank['pair_auc']:.3f}")
        if self.truth and self.truth.get("mlp_effects"):
            largest = sorted(enumerate(self.truth["mlp_effects"]), key=lambda row: -abs(row[1]))[:5]
            shown = (f"m{layer} {round(effect, 3) + 0.0:+.3f}" for layer, effect in largest)  # no "-0.000"
            lines.append("  largest MLPs    " + "  ".join(shown))
        if self.components:
            both = self.components
            if both["roc_auc"] is not None:
                lines.append(
                    f"  heads and MLPs  ROC AUC {both['roc_auc']:.3f}"
                    f"  average precision {both['average_precision']:.3f}"
                )
            if both["spearman"] is not None:
                lines.append(f"    rank correlation with |effect| {both['spearman']:.3f}")
            if both["membership"] is not None:
                found = both["membership"]
                lines.append(
                    f"  chosen heads and MLPs  precision {found['precision']:.3f}  recall {found['recall']:.3f}"
                    f"  F1 {found['f1']:.3f}"
                )
        if self.paths:
            found = self.paths
            counts = f"{found['n_edges_in_truth']} of {found['n_paths']} between the heads of largest effect matter"
            lines.append(f"paths: {counts}, over {found['n_pairs']} pairs")
            lines += [
                f"  {row['from']:>8} -> {row['to']:<8} {row['effect']:+.3f}  [{row['low']:+.3f}, {row['high']:+.3f}]"
                for row in found["largest"][:5]
            ]
            if found["pair_auc"] is not None:
                lines.append(
                    f"  edges           ROC AUC {found['pair_auc']:.3f}"
                    f"  average precision {found['pair_average_precision']:.3f}"
                )
            for slot, its in found.get("by_slot", {}).items():
                judged = its["pair_auc"] is not None
                figures = (
                    f"ROC AUC {its['pair_auc']:.3f}  average precision {its['pair_average_precision']:.3f}"
                    if judged
                    else "not judged"
                )
                name = {"qkv": "q, k, v apart"}.get(slot, f"into {slot} alone")
                lines.append(f"  {name:<15} {figures}  ({its['n_edges_in_truth']} of {its['n_paths']} matter)")
        if self.faithfulness:
            found = self.faithfulness
            lines.append(
                f"{found['ablation']} ablation: faithfulness {found['faithfulness']:.3f}"
                f"  completeness {found['completeness']:.3f} (0 is best)  over {found['n_pairs']} pairs"
            )
        if self.areas:
            lines.append(f"over shares of heads: CPR {self.areas['cpr']:.3f}  CMD {self.areas['cmd']:.3f}")
        if self.edge_areas:
            found = self.edge_areas
            lines.append(f"over shares of {found['n_edges']} edges: CPR {found['cpr']:.3f}  CMD {found['cmd']:.3f}")
        if self.curve:
            line = self.curve
            random = [f" ({value:.3f})" for value in line["random_mean"]] or [""] * len(line["sizes"])
            rows = zip(line["sizes"], line["faithfulness"], random, strict=True)
            lines.append("heads kept: faithfulness (random circuits)")
            lines += [f"  {size:>5}  {value:7.3f}{beside}" for size, value, beside in rows]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
