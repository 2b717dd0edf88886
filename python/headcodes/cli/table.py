"""The table that `headcodes discover` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from headcodes.evaluation.confirm import confirmation
from headcodes.graph import numbered, parse_part
from headcodes.interventions.verify import SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headcodes.interventions.verify import Verification
    from headcodes.result import Result


_STOPPED = {
    "quiet": "ten in a row were not confirmed",
    "budget": "the budget is spent",
    "all": "no other head has a score",
    "asked": "so many were asked for",
}


@dataclass(frozen=True)
class Grid:
    """Rows under titled columns.

    Attributes:
        columns: title, and whether cells stand to the left or to the right.
    """

    columns: list[tuple[str, Literal["left", "right"]]]
    rows: list[list[str]]

    def __str__(self) -> str:
        table = [[title for title, _ in self.columns], *self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        sides = ["<" if side == "left" else ">" for _, side in self.columns]
        form = [f"{side}{width}" for side, width in zip(sides, widths, strict=True)]
        lines = ["  ".join(map(format, row, form)) for row in table]
        return "\n".join(line.rstrip() for line in lines)


# What stands together; an empty line parts one from the next.
Paragraph = list[str | Grid]


def table(result: Result, top: int) -> str:
    """Return a result as lines for a terminal: task check, heads, edges, faithfulness, seconds."""
    return "\n\n".join("\n".join(map(str, paragraph)) for paragraph in paragraphs(result, top))


def paragraphs(result: Result, top: int) -> list[Paragraph]:
    """Return a result as it is shown: lines of text, and grids of heads and of edges."""
    check, by_seed = result.task_check, result.by_seed
    whole = []
    if check.whole_share_right is not None:
        likelier = f"{check.whole_share_right:.1%}, by {check.whole_log_ratio:+.2f} nats"
        whole = [f"whole answers: the right ones likelier in {likelier}"]
    method = result.method + (f" ({result.method_used})" if result.method_used != result.method else "")
    heading: Paragraph = [
        f"{result.model}  {result.pairs.task} ({result.pairs.negative} negatives)  method {method}"
        f"  seed {result.seed}{f', mean of {len(by_seed.seeds)} of the method' if by_seed else ''}"
        f"  {result.dtype}  BOS {'added' if result.bos_added else 'not added'}",
        f"task check: {check.share_right:.1%} of {check.n_pairs} positives right, "
        f"logit difference {check.positive_logit_diff:+.2f} positive, {check.negative_logit_diff:+.2f} negative",
        *whole,
    ]
    if result.layers_without_heads:
        heading.append(f"no attention heads in {numbered(result.layers_without_heads)}: run, and left out")
    if result.findings.fallback is not None:
        heading.append(f"default stands for {result.method_used}: {result.findings.fallback}")
    if result.unverified is not None:
        heading.append(result.unverified)
    found = _proposed(result, top) if result.verification is None else _confirmed(result, result.verification, top)
    stages = "  ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.timings_s.items())
    return [heading, *found, [f"seconds: {stages}"]]


def _proposed(result: Result, top: int) -> list[Paragraph]:
    """Return the best heads and pairs by score, which nothing has confirmed."""
    circuit, by_seed = result.circuit(top), result.by_seed
    agreement = {name: values.ravel() for name, values in by_seed.agreement(top).items()} if by_seed else {}
    resampled = result.findings.resampled
    drawn = [] if resampled is None else [*resampled.interval, resampled.frequency(top)]

    def grid(ends: list[str], rows: Sequence[tuple[list[str], float, int | None]], kind: str) -> Grid:
        tests = result.node_tests if kind == "head" else None
        titles = ["score", *(["±", "consensus"] if by_seed else []), *(["p", "q"] if tests else [])]
        titles += ["low", "high", "selected"] if drawn and kind == "head" else []
        cells = []
        for rank, (names, score, index) in enumerate(rows, start=1):
            row = [str(rank), *names, _score(score)]
            if by_seed is not None:
                spread, share = (agreement[f"{kind}_{what}"] for what in ("spread", "consensus"))
                row += ["", ""] if index is None else [_score(spread[index]), f"{share[index]:.0%}"]
            if tests is not None:
                row += ["", ""] if index is None else [f"{tests.p[index]:.2g}", f"{tests.q[index]:.2g}"]
            if drawn and kind == "head" and index is not None:
                low, high, selected = (float(each.flat[index]) for each in drawn)
                row += [_score(low), _score(high), f"{selected:.0%}"]
            cells.append(row)
        return Grid(
            [("rank", "right"), *((end, "left") for end in ends), *((title, "right") for title in titles)], cells
        )

    place = {name: index for index, name in enumerate(result.components)}  # MLPs come with neither seeds nor tests
    heads = [([node], circuit.node_scores[node], place.get(node)) for node in circuit.nodes]
    found: list[Paragraph] = [[grid(["head"], heads, "head"), *_tests(result)]]
    if resampled is not None:
        found[0].append(
            f"{len(circuit.nodes)} heads are among the {top} best in at least {resampled.stable:.0%} of"
            f" {len(resampled.scores)} draws of the {resampled.n_pairs} pairs; low, high: 95% interval of the magnitude"
        )
    if circuit.edges:
        pairs = [
            (
                [source, destination],
                circuit.edge_scores[source, destination],
                place[source] * len(place) + place[destination],
            )
            for source, destination in circuit.edges
        ]
        found.append([grid(["from", "to"], pairs, "pair")])
    return found


def _tests(result: Result) -> list[str]:
    if result.node_tests is None:
        return []
    n_passed = int((result.node_tests.q <= result.fdr).sum())
    return [
        f"{n_passed} of {len(result.components)} heads have codes that differ between the sides (q <= {result.fdr}"
        f"; {result.node_tests.n_permutations} permutations of the pairs that did not train the autoencoder).",
        "That is not membership in the circuit: a head may differ and matter for nothing.",
    ]


def _confirmed(result: Result, verification: Verification, top: int) -> list[Paragraph]:
    """Return the confirmed heads, those that are not, the edges between them, and what they do on held-out prompts.

    Of heads and of edges the ``top`` of largest effect, and how many more there are.
    """
    about, circuit = confirmation(result.findings, verification), result.circuit()
    tests, coded = result.node_tests, result.codes is not None
    what = "heads" if result.findings.components == "heads" else "heads and MLPs"
    found: list[Paragraph] = [
        [
            f"{len(circuit.nodes)} {what} confirmed of {len(verification.heads)} patched exactly on {about['n_pairs']}"
            " pairs: surely an effect, on average or on single answers, that may be"
            f" {SHARE:.0%} of the logit difference ({about['clean_logit_diff']:.2f}) or more"
        ]
    ]
    rows = []
    for rank, node in enumerate(circuit.nodes[:top], start=1):
        row = [str(rank), node, *_effect(circuit.effects[node])]
        if tests is not None:
            index = result.components.index(node)
            row += [f"{tests.p[index]:.2g}", f"{tests.q[index]:.2g}"]
        if coded:
            used = result.findings.codes_used(node) or {"clean": [], "corrupt": []}
            row.append(" | ".join(_codes(used[side]) for side in ("clean", "corrupt")))
        rows.append(row)
    columns: list[tuple[str, Literal["left", "right"]]] = [("rank", "right"), ("head", "left"), *_EFFECT]
    columns += [("p", "right"), ("q", "right")] if tests is not None else []
    columns += [("codes on clean | corrupted", "left")] if coded else []
    below: Paragraph = [Grid(columns, rows), *_more(len(circuit.nodes) - top)]
    others = [node for node in circuit.effects if parse_part(node) is not None and node not in circuit.nodes]
    if others:
        named = ", ".join(f"{node} {circuit.effects[node]['effect']:+.2f}" for node in others[:8])
        below.append(f"not confirmed: {named}{f' and {len(others) - 8} more' if len(others) > 8 else ''}")
    if about["interval"] != "bootstrap":
        below.append(
            f"on {about['n_pairs']} answered pairs little is sure, and most heads that count pass unnoticed; give more,"
            " 16 if you can"
            if about["interval"] == "t"
            else "one answered pair says nothing of other prompts: effects have no intervals; give more, 16 if you can"
        )
    below.append(
        f"not reached ({_STOPPED[about['stopped']]}): {about['n_unreached']} {what},"
        f" with {about['unreached_share']:.0%} of all that was foretold"
    )
    found.append([*below, *_tests(result)])
    if result.paths is not None:
        by = "a backward pass" if about["paths_proposed_by"] == "gradients" else "their weights and the heads' effects"
        patched = f"{len(result.paths.edges)} patched exactly on {len(result.paths.effects)} pairs"
        found.append([f"{len(circuit.edges)} edges between them confirmed of {patched}, proposed by {by}"])
    if circuit.edges:
        paths = [
            [str(rank), source, destination, *_effect(circuit.effects[f"{source}->{destination}"])]
            for rank, (source, destination) in enumerate(circuit.edges[:top], start=1)
        ]
        grid = Grid([("rank", "right"), ("from", "left"), ("to", "left"), *_EFFECT], paths)
        found.append([grid, *_more(len(circuit.edges) - top)])
    if (held := result.held_out) is not None:
        alone = held["faithfulness_without_mlps"]
        found.append(
            [
                f"on {held['n_pairs']} other pairs: faithfulness {held['faithfulness']:.2f} with these {what} alone"
                + ("" if alone is None else f" ({alone:.2f} with MLPs corrupted too)")
                + f", completeness {held['completeness']:.2f} without them"
            ]
        )
    return found


def _more(n: int) -> list[str]:
    return [f"and {n} more, in circuit.json (--out)"] if n > 0 else []


_EFFECT: list[tuple[str, Literal["left", "right"]]] = [("effect", "right"), ("95% interval", "left")]


def _effect(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['effect']:+.3f}", f"[{row['low']:+.3f}, {row['high']:+.3f}]"]


def _codes(used: list[tuple[int, float]]) -> str:
    return ", ".join(f"{'none' if code < 0 else code} {share:.0%}" for code, share in used[:2])


def _score(score: float) -> str:
    return f"{score:.0f}" if float(score).is_integer() else f"{score:.4g}"
