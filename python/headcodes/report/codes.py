"""Codes of chosen heads: which occur in positives only, and in which prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headcodes.report.figures import number, plain
from headcodes.report.records import SEED_LABELS

if TYPE_CHECKING:
    from jaxtyping import Bool, Int32

    from headcodes.report.records import RunRecord

_N_CODES, _PROMPT_LENGTH = 3, 70


def _sides(run: RunRecord) -> tuple[np.ndarray, Bool[np.ndarray, " n_prompt"], Bool[np.ndarray, " n_prompt"]] | None:
    """Return codes, and which rows are positives and negatives that the scores were counted on."""
    codes = run.arrays.get("codes")
    if codes is None:
        return None
    counted = np.asarray(run.arrays.get("scored_prompts", np.ones(len(codes), dtype=bool)), dtype=bool)
    clean = np.arange(len(codes)) < len(codes) // 2
    return codes, counted & clean, counted & ~clean


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
    """Return hover text for each chosen head: how seeds agree, its commonest positive-only codes with a prompt each."""
    sides = _sides(run)
    agreement = {what: its for what, its in run.head_values.items() if what in SEED_LABELS}
    notes = {}
    for layer, head in run.circuit.heads:
        lines = [f"{what}: {number(its[layer, head])}" for what, its in agreement.items()]
        if sides is not None:
            codes, clean, corrupt = sides
            column = codes[:, layer * run.circuit.n_heads + head]
            only = positive_only(column, clean, corrupt)
            lines.append(f"{len(only)} codes in positives only")
            for code, count in only[:_N_CODES]:
                first = int(np.flatnonzero((column == code) & clean)[0])
                prompt = "" if run.pairs is None else f": “{plain(run.pairs[first].clean, _PROMPT_LENGTH)}”"
                lines.append(f"code {code}, {count} positives{prompt}")
        notes[f"a{layer}.h{head}"] = "".join(f"<br>{line}" for line in lines)
    return notes


# Array of a run -> its label in the table of pairs, in the order of the columns.
_PER_PAIR = {
    "pair_p_family": "p over all pairs",
    "pair_q_values": "q",
    "pair_spread": SEED_LABELS[0],
    "pair_consensus": SEED_LABELS[1],
}


def edge_values(run: RunRecord) -> dict[str, dict[tuple[str, str], float | None]]:
    """Return what is known of each chosen edge between heads beside its score: tests, agreement of seeds, interval.

    None where an edge has no such number: q is taken over pairs of heads that passed their own test.
    """
    index = {f"a{layer}.h{head}": layer * run.circuit.n_heads + head for layer, head in run.circuit.heads}
    places = {edge: (index[edge[0]], index[edge[1]]) for edge in run.circuit.edges if set(edge) <= index.keys()}
    known = {label: run.arrays[name] for name, label in _PER_PAIR.items() if name in run.arrays}
    rows = {edge: row for edge in run.circuit.edges if (row := run.circuit.effects.get("->".join(edge))) is not None}
    intervals = {"95% from": "low", "95% to": "high"} if rows else {}
    return {
        label: {edge: float(array[at]) if np.isfinite(array[at]) else None for edge, at in places.items()}
        for label, array in known.items()
    } | {label: {edge: float(row[name]) for edge, row in rows.items()} for label, name in intervals.items()}


def edge_notes(run: RunRecord) -> dict[tuple[str, str], str]:
    """Return hover text for each chosen edge: tests, how seeds agree, its commonest positive-only pairs of codes."""
    sides = _sides(run)
    names = {f"a{layer}.h{head}": layer * run.circuit.n_heads + head for layer, head in run.circuit.heads}
    values = edge_values(run)
    notes = {}
    for edge in run.circuit.edges:
        if not set(edge) <= names.keys():
            continue
        lines = [
            f"{what}: {'not taken' if (value := its[edge]) is None else number(value)}"
            for what, its in values.items()
            if edge in its
        ]
        if sides is not None:
            codes, clean, corrupt = sides
            first, second = (codes[:, names[end]].astype(np.int64) for end in edge)
            joint = np.where((first >= 0) & (second >= 0), (first << 32) | second, -1)
            only = positive_only(joint, clean, corrupt)
            explained = sum(count for _, count in only)
            share = f" ({explained / clean.sum():.0%} of positives)" if clean.any() else ""
            lines.append(f"overlap: {number(len(only))} pairs of codes in positives only{share}")
            for pair, count in only[:_N_CODES]:
                lines.append(f"codes {pair >> 32} and {pair & 0xFFFFFFFF}: {count} positives")
        notes[edge] = "".join(f"<br>{line}" for line in lines)
    return notes
