"""The table that `headcodes discover` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headcodes.result import Result


def table(result: Result, top: int) -> str:
    """Return a result as lines for a terminal: task check, heads, tests, exact effects, pairs, seconds."""
    check, by_seed = result.task_check, result.by_seed
    columns = f"{'score':>9}"
    if by_seed is not None:
        columns += f"  {'±':>8}  consensus"
    whole = []
    if check.whole_share_right is not None:
        likelier = f"{check.whole_share_right:.1%}, by {check.whole_log_ratio:+.2f} nats"
        whole = [f"whole answers: the right ones likelier in {likelier}"]
    lines = [
        f"{result.model}  {result.pairs.task} ({result.pairs.negative} negatives)  method {result.method}"
        f"  seed {result.seed}{f', mean of {len(by_seed.seeds)} of the method' if by_seed else ''}"
        f"  {result.dtype}  BOS {'added' if result.bos_added else 'not added'}",
        f"task check: {check.share_right:.1%} of {check.n_pairs} positives right, "
        f"logit difference {check.positive_logit_diff:+.2f} positive, {check.negative_logit_diff:+.2f} negative",
        *whole,
        "",
        f"{'rank':>4}  {'head':<9} {columns}" + ("         p         q" if result.node_tests else ""),
    ]
    circuit = result.circuit(top)
    agreement = {name: values.ravel() for name, values in by_seed.agreement(top).items()} if by_seed else {}
    for rank, node in enumerate(circuit.nodes, start=1):
        index = result.components.index(node)
        line = f"{rank:>4}  {node:<9} {_score(circuit.node_scores[node]):>9}"
        if by_seed is not None:
            line += f"  {_score(agreement['head_spread'][index]):>8}  {agreement['head_consensus'][index]:>9.0%}"
        if result.node_tests is not None:
            line += f"  {result.node_tests.p[index]:8.2g}  {result.node_tests.q[index]:8.2g}"
        lines.append(line)
    if result.node_tests is not None:
        n_passed = int((result.node_tests.q <= result.fdr).sum())
        lines += [
            f"{n_passed} of {len(result.components)} heads have codes that differ between the sides (q <= {result.fdr}"
            f"; {result.node_tests.n_permutations} permutations of the pairs that did not train the autoencoder).",
            "That is not membership in the circuit: a head may differ and matter for nothing.",
        ]
    if result.verification is not None:
        clean_ld = float(result.verification.clean_ld.mean())
        lines += ["", f"exact effect on the logit difference ({clean_ld:.2f}), 95% interval over prompts", ""]
        for row in sorted(result.verification.as_rows(), key=lambda row: -abs(row["effect"])):
            lines.append(f"      {row['head']:<9} {row['effect']:>+9.3f}  [{row['low']:+.3f}, {row['high']:+.3f}]")
    if circuit.edges:
        lines += ["", f"{'rank':>4}  {'from':<9} {'to':<9} {columns}"]
        for rank, (source, target) in enumerate(circuit.edges, start=1):
            line = f"{rank:>4}  {source:<9} {target:<9} {_score(circuit.edge_scores[source, target]):>9}"
            if by_seed is not None:
                index = result.components.index(source) * len(result.components) + result.components.index(target)
                line += f"  {_score(agreement['pair_spread'][index]):>8}  {agreement['pair_consensus'][index]:>9.0%}"
            lines.append(line)
    stages = "  ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.timings_s.items())
    return "\n".join([*lines, "", f"seconds: {stages}"])


def _score(score: float) -> str:
    return f"{score:.0f}" if float(score).is_integer() else f"{score:.4g}"
