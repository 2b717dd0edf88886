"""What codes say about chosen heads: which occur in positives only, and in which prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headcodes.report.figures import number, plain

if TYPE_CHECKING:
    from jaxtyping import Bool, Int32

    from headcodes.report.records import RunRecord

_N_CODES, _PROMPT_LENGTH = 3, 70


def _sides(run: RunRecord) -> tuple[np.ndarray, Bool[np.ndarray, " n_prompt"], Bool[np.ndarray, " n_prompt"]] | None:
    """Return codes, and which rows are judged positives and judged negatives."""
    codes = run.arrays.get("codes")
    if codes is None:
        return None
    judged = np.asarray(run.arrays.get("judged", np.ones(len(codes), dtype=bool)), dtype=bool)
    clean = np.arange(len(codes)) < len(codes) // 2
    return codes, judged & clean, judged & ~clean


def positive_only(
    codes: Int32[np.ndarray, " n_prompt"], clean: Bool[np.ndarray, " n"], corrupt: Bool[np.ndarray, " n"]
) -> list[tuple[int, int]]:
    """Return (code, number of positives) of codes in positives and in no negative, commonest first; -1 never counts."""
    values, counts = np.unique(codes[clean], return_counts=True)
    elsewhere = set(codes[corrupt].tolist())
    only = [(int(v), int(c)) for v, c in zip(values, counts, strict=True) if v >= 0 and int(v) not in elsewhere]
    return sorted(only, key=lambda pair: -pair[1])


def unique_codes(run: RunRecord) -> Int32[np.ndarray, " n_component"] | None:
    """Return how many codes of each head are positive-only; None for a run without codes."""
    sides = _sides(run)
    if sides is None:
        return None
    codes, clean, corrupt = sides
    return np.array([len(positive_only(column, clean, corrupt)) for column in codes.T], dtype=np.int32)


def node_notes(run: RunRecord) -> dict[str, str]:
    """Return, for each chosen head, its commonest positive-only codes with a prompt each, as hover text."""
    sides = _sides(run)
    if sides is None:
        return {}
    codes, clean, corrupt = sides
    notes = {}
    for layer, head in run.circuit.heads:
        column = codes[:, layer * run.circuit.n_heads + head]
        only = positive_only(column, clean, corrupt)
        lines = [f"<br>{len(only)} codes in positives only"]
        for code, count in only[:_N_CODES]:
            first = int(np.flatnonzero((column == code) & clean)[0])
            prompt = "" if run.pairs is None else f": “{plain(run.pairs[first].clean, _PROMPT_LENGTH)}”"
            lines.append(f"code {code}, {count} positives{prompt}")
        notes[f"a{layer}.h{head}"] = "<br>".join(lines)
    return notes


def edge_tests(run: RunRecord) -> dict[tuple[str, str], tuple[float, float | None]]:
    """Return (family-wise p, q) of each chosen edge between heads, where a run holds tests of pairs.

    q is None for pairs that it was not taken over: at least one of the two heads did not pass its own test.
    """
    p, q = run.arrays.get("pair_p_family"), run.arrays.get("pair_q_values")
    if p is None or q is None:
        return {}
    index = {f"a{layer}.h{head}": layer * run.circuit.n_heads + head for layer, head in run.circuit.heads}
    return {
        (source, target): (float(p[at]), None if np.isnan(q[at]) else float(q[at]))
        for source, target in run.circuit.edges
        if source in index and target in index
        for at in [(index[source], index[target])]
    }


def edge_notes(run: RunRecord) -> dict[tuple[str, str], str]:
    """Return, for each chosen edge between heads, its commonest positive-only pairs of codes, as hover text."""
    sides = _sides(run)
    if sides is None:
        return {}
    codes, clean, corrupt = sides
    names = {f"a{layer}.h{head}": layer * run.circuit.n_heads + head for layer, head in run.circuit.heads}
    notes = {}
    tests = edge_tests(run)
    for source, target in run.circuit.edges:
        if source not in names or target not in names:
            continue
        first, second = codes[:, names[source]].astype(np.int64), codes[:, names[target]].astype(np.int64)
        joint = np.where((first >= 0) & (second >= 0), (first << 32) | second, -1)
        only = positive_only(joint, clean, corrupt)
        explained = sum(count for _, count in only)
        share = f" ({explained / clean.sum():.0%} of positives)" if clean.any() else ""
        lines = [f"<br>overlap: {number(len(only))} pairs of codes in positives only{share}"]
        lines += [f"codes {pair >> 32} and {pair & 0xFFFFFFFF}: {count} positives" for pair, count in only[:_N_CODES]]
        if (source, target) in tests:
            p, q = tests[source, target]
            lines.append(f"p {number(p)} over all pairs, " + ("q not taken" if q is None else f"q {number(q)}"))
        notes[source, target] = "<br>".join(lines)
    return notes
