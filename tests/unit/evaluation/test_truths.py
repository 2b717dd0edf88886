from __future__ import annotations

import numpy as np
import pytest

from headcodes.errors import HeadcodesError
from headcodes.evaluation import truths

# Copied by hand from the publications, so that no truth changes silently.
HEADS = {
    ("ioi", "wang2022"): "0.1 0.10 2.2 3.0 4.11 5.5 5.8 5.9 6.9 7.3 7.9 8.6 8.10 9.0 9.6 9.7 9.9 10.0 10.1 10.2"
    " 10.6 10.7 10.10 11.2 11.9 11.10",
    ("ioi", "oneill2024"): "0.1 0.10 2.2 3.0 4.11 5.5 5.8 5.9 6.9 7.3 7.9 8.6 8.10 9.6 9.7 9.9 10.0 10.1 10.2"
    " 10.6 10.7 10.10 11.2 11.3 11.9 11.10",
    ("greater-than", "conmy2023"): "0.1 0.3 0.5 5.5 6.1 6.9 7.10 8.11 9.1",
    ("greater-than", "oneill2024"): "0.1 0.3 0.5 5.5 6.1 6.9 7.10 8.11 9.1",
    ("greater-than", "hanna2023"): "5.1 5.5 6.9 7.10 8.8 8.11 9.1",
    ("docstring", "conmy2023"): "0.5 1.2 1.4 2.0 3.0 3.6",
    ("docstring", "oneill2024"): "0.5 1.0 1.4 2.0 3.0 3.6",
    ("docstring", "heimersheim2023"): "0.2 0.4 0.5 1.2 1.4 2.0 3.0 3.6",
}
N_PAIRS = {
    # previous 2 x induction 4, (duplicate 3 + induction 4) x S-inhibition 4, S-inhibition 4 x 13 movers
    ("ioi", "wang2022"): 8 + 28 + 52,
    ("ioi", "oneill2024"): 8 + 28 + 52,
    ("greater-than", "conmy2023"): 18,
    ("greater-than", "oneill2024"): 18,
    ("docstring", "conmy2023"): 12,
    ("docstring", "oneill2024"): 12,
}


@pytest.mark.parametrize("key", list(HEADS))
def test_heads_are_the_published_ones(key: tuple[str, str]) -> None:
    truth = truths.get(*key)
    assert " ".join(f"{layer}.{head}" for layer, head in truth.heads) == HEADS[key]
    assert int(truth.labels.sum()) == len(truth.heads)
    assert all(truth.labels[head] for head in truth.heads)
    assert len(truth.pairs) == len(set(truth.pairs)) == N_PAIRS.get(key, 0)
    assert "20" in truth.source


def test_table_is_complete() -> None:
    assert truths.names() == list(HEADS)
    assert truths.names("docstring") == [("docstring", n) for n in ("conmy2023", "oneill2024", "heimersheim2023")]
    assert truths.names("capital-country") == []


@pytest.mark.parametrize("key", list(HEADS))
def test_pairs_join_heads_of_the_circuit_forward(key: tuple[str, str]) -> None:
    truth = truths.get(*key)
    for source, target in truth.pairs:
        assert {source, target} <= set(truth.heads)
        assert source[0] < target[0]
    rows, columns = np.nonzero(truth.pair_labels)
    found = {(divmod(i, truth.n_heads), divmod(j, truth.n_heads)) for i, j in zip(rows, columns, strict=True)}
    assert found == set(truth.pairs)
    circuit = truths.circuit_of(truth)  # refuses an edge against the data
    assert circuit.heads == truth.heads
    assert circuit.pairs == list(truth.pairs)


def test_named_pairs() -> None:
    docstring = truths.get("docstring", "conmy2023")
    assert set(docstring.pairs) == {
        *(((0, 5), end) for end in ((1, 2), (1, 4), (2, 0), (3, 0), (3, 6))),
        *(((1, 4), end) for end in ((2, 0), (3, 0), (3, 6))),
        *(((2, 0), end) for end in ((3, 0), (3, 6))),
        *(((1, 2), end) for end in ((3, 0), (3, 6))),
    }
    greater = truths.get("greater-than", "conmy2023")
    assert {source for source, _ in greater.pairs} == {(0, 1), (0, 3), (0, 5)}
    assert greater.mlps == (0, 1, 2, 3, 8, 9, 10, 11)
    assert truths.get("greater-than", "hanna2023").mlps == (8, 9, 10, 11)
    assert ((4, 11), (5, 5)) in truths.get("ioi", "wang2022").pairs
    assert ((0, 1), (5, 5)) not in truths.get("ioi", "wang2022").pairs
    assert ((7, 3), (11, 3)) in truths.get("ioi", "oneill2024").pairs


def test_roles_of_ioi() -> None:
    roles = truths.get("ioi", "wang2022").roles
    assert {role: len(heads) for role, heads in roles.items()} == {
        "name mover": 3,
        "backup name mover": 8,
        "negative name mover": 2,
        "S-inhibition": 4,
        "induction": 4,
        "duplicate token": 3,
        "previous token": 2,
    }


def test_unknown_truth_names_the_known_ones() -> None:
    with pytest.raises(HeadcodesError, match=r"wang2022, oneill2024.*got 'wang2023'"):
        truths.get("ioi", "wang2023")
    with pytest.raises(HeadcodesError, match="none"):
        truths.get("induction", "wang2022")
