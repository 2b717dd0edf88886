"""The table that `headcodes discover` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headcodes.evaluation.confirm import confirmation
from headcodes.graph import parse_head
from headcodes.interventions.verify import SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headcodes.interventions.verify import Verification
    from headcodes.result import Result


_STOPPED = {
    "quiet": "ten in a row lie below it",
    "budget": "the budget is spent",
    "all": "no other head has a score",
    "asked": "so many were asked for",
}


def table(result: Result, top: int) -> str:
    """Return a result as lines for a terminal: task check, heads, edges, faithfulness, seconds."""
    check, by_seed = result.task_check, result.by_seed
    whole = []
    if check.whole_share_right is not None:
        likelier = f"{check.whole_share_right:.1%}, by {check.whole_log_ratio:+.2f} nats"
        whole = [f"whole answers: the right ones likelier in {likelier}"]
    method = result.method + (f" ({result.method_used})" if result.method_used != result.method else "")
    lines = [
        f"{result.model}  {result.pairs.task} ({result.pairs.negative} negatives)  method {method}"
        f"  seed {result.seed}{f', mean of {len(by_seed.seeds)} of the method' if by_seed else ''}"
        f"  {result.dtype}  BOS {'added' if result.bos_added else 'not added'}",
        f"task check: {check.share_right:.1%} of {check.n_pairs} positives right, "
        f"logit difference {check.positive_logit_diff:+.2f} positive, {check.negative_logit_diff:+.2f} negative",
        *whole,
    ]
    if result.findings.fallback is not None:
        lines.append(f"default stands for {result.method_used}: {result.findings.fallback}")
    if result.unverified is not None:
        lines.append(result.unverified)
    found = _proposed(result, top) if result.verification is None else _confirmed(result, result.verification)
    stages = "  ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.timings_s.items())
    return "\n".join([*lines, "", *found, "", f"seconds: {stages}"])


def _proposed(result: Result, top: int) -> list[str]:
    """Return the best heads and pairs by score, which nothing has confirmed."""
    circuit, by_seed = result.circuit(top), result.by_seed
    columns = f"{'score':>9}"
    if by_seed is not None:
        columns += f"  {'±':>8}  consensus"
    lines = [f"{'rank':>4}  {'head':<9} {columns}" + ("         p         q" if result.node_tests else "")]
    agreement = {name: values.ravel() for name, values in by_seed.agreement(top).items()} if by_seed else {}
    for rank, node in enumerate(circuit.nodes, start=1):
        line = f"{rank:>4}  {node:<9} {_score(circuit.node_scores[node]):>9}"
        index = result.components.index(node) if parse_head(node) else None  # MLPs come with neither seeds nor tests
        if by_seed is not None and index is not None:
            line += f"  {_score(agreement['head_spread'][index]):>8}  {agreement['head_consensus'][index]:>9.0%}"
        if result.node_tests is not None and index is not None:
            line += f"  {result.node_tests.p[index]:8.2g}  {result.node_tests.q[index]:8.2g}"
        lines.append(line)
    lines += _tests(result)
    if circuit.edges:
        lines += ["", f"{'rank':>4}  {'from':<9} {'to':<9} {columns}"]
        for rank, (source, destination) in enumerate(circuit.edges, start=1):
            line = f"{rank:>4}  {source:<9} {destination:<9} {_score(circuit.edge_scores[source, destination]):>9}"
            if by_seed is not None:
                index = result.components.index(source) * len(result.components) + result.components.index(destination)
                line += f"  {_score(agreement['pair_spread'][index]):>8}  {agreement['pair_consensus'][index]:>9.0%}"
            lines.append(line)
    return lines


def _tests(result: Result) -> list[str]:
    if result.node_tests is None:
        return []
    n_passed = int((result.node_tests.q <= result.fdr).sum())
    return [
        f"{n_passed} of {len(result.components)} heads have codes that differ between the sides (q <= {result.fdr}"
        f"; {result.node_tests.n_permutations} permutations of the pairs that did not train the autoencoder).",
        "That is not membership in the circuit: a head may differ and matter for nothing.",
    ]


def _confirmed(result: Result, verification: Verification) -> list[str]:
    """Return the confirmed heads, those that are not, the edges between them, and what they do on held-out prompts."""
    about, circuit = confirmation(result.findings, verification), result.circuit()
    coded = result.codes is not None
    patched = f"{len(verification.heads)} patched exactly on {about['n_pairs']} pairs"
    lines = [
        f"{len(circuit.nodes)} heads confirmed of {patched}: an effect of at least {SHARE:.0%} of the logit difference"
        f" ({about['clean_logit_diff']:.2f}), its interval off 0",
        "",
        f"{'rank':>4}  {'head':<9} {'effect':>8}  {'95% interval':<18}"
        + ("         p         q" if result.node_tests else "")
        + ("  codes on clean | corrupted" if coded else ""),
    ]
    for rank, node in enumerate(circuit.nodes, start=1):
        index = result.components.index(node)
        line = f"{rank:>4}  {node:<9} {_effect(circuit.effects[node])}"
        if result.node_tests is not None:
            line += f"  {result.node_tests.p[index]:8.2g}  {result.node_tests.q[index]:8.2g}"
        used = result.findings.codes_used(index)
        if used is not None:
            line += "  " + " | ".join(_codes(used[side]) for side in ("clean", "corrupt"))
        lines.append(line)
    others = [node for node in circuit.effects if parse_head(node) is not None and node not in circuit.nodes]
    if others:
        named = ", ".join(f"{node} {circuit.effects[node]['effect']:+.2f}" for node in others[:8])
        lines.append(f"not confirmed: {named}{f' and {len(others) - 8} more' if len(others) > 8 else ''}")
    lines.append(
        f"not reached ({_STOPPED[about['stopped']]}): {about['n_unreached']} heads,"
        f" with {about['unreached_share']:.0%} of all that was foretold"
    )
    lines += _tests(result)
    if circuit.edges:
        lines += ["", f"{'rank':>4}  {'from':<9} {'to':<12} {'effect':>8}  95% interval"]
        for rank, (source, destination) in enumerate(circuit.edges, start=1):
            lines.append(
                f"{rank:>4}  {source:<9} {destination:<12} {_effect(circuit.effects[f'{source}->{destination}'])}"
            )
    if (held := result.held_out) is not None:
        alone = held["faithfulness_without_mlps"]
        lines += [
            "",
            f"on {held['n_pairs']} other pairs: faithfulness {held['faithfulness']:.2f} with these heads alone"
            + ("" if alone is None else f" ({alone:.2f} with MLPs corrupted too)")
            + f", completeness {held['completeness']:.2f} without them",
        ]
    return lines


def _effect(row: Mapping[str, Any]) -> str:
    interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{row['effect']:>+8.3f}  {interval:<18}"


def _codes(used: list[tuple[int, float]]) -> str:
    return ", ".join(f"{'none' if code < 0 else code} {share:.0%}" for code, share in used[:2])


def _score(score: float) -> str:
    return f"{score:.0f}" if float(score).is_integer() else f"{score:.4g}"
