"""Batches of pairs, and the groups their positions fall into."""

from __future__ import annotations

from headcodes.interventions.runs import batches, position_groups
from made_pairs import made


def test_every_position_of_a_prompt_is_in_one_group() -> None:
    # The second prompt is filled up; both change at the second token, the first at its last one too.
    tokens = made([[5, 6, 7, 8], [5, 6, 7]], [[5, 9, 7, 10], [5, 9, 7]], [[3], [3]], [[4], [4]])
    (batch,) = batches(tokens, 1, 1 << 20)
    changed, between, last = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
    found = dict(zip(batch.rows, position_groups(batch).tolist(), strict=True))
    assert found[0] == [between, changed, between, last]
    assert found[1] == [between, changed, last, [0.0, 0.0, 0.0]]
