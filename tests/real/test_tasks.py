"""What SmolLM2-135M makes of every task. docs/tasks.md states the rates over 100 pairs; here fewer, with room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from headcodes import capture, tasks
from headcodes.prompts.task_check import check_task, logit_differences
from headcodes.prompts.tokens import TokenPairs, tokenize

if TYPE_CHECKING:
    from headcodes.prompts.task_check import TaskCheck

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore::headcodes.HeadcodesWarning")]

N = 24
# Least share of positives answered right, and bounds on the negatives' mean logit difference.
EXPECTED = {
    "ioi": (0.95, -1.2, 1.8),
    # The model follows 01 with small numbers, so these negatives lean to the wrong side rather than to none.
    "greater-than": (0.95, -4.0, 0.0),
    # The right answer is nowhere in these negatives.
    "docstring": (0.65, -10.0, -6.0),
    "induction": (0.75, -1.5, 1.5),
    "gendered-pronoun": (0.95, -1.0, 1.0),
    "subject-verb": (0.9, -1.2, 1.2),
    "capital-country": (0.95, -2.0, 2.5),
}


def answered(model: Any, tokens: TokenPairs) -> TaskCheck:
    _, logits = capture(model, tokens.clean + tokens.corrupt, answer_ids=tokens.scored_ids * 2)
    assert logits is not None
    sides = logits[: len(tokens)], logits[len(tokens) :]
    return check_task(tokens.pairs.task, *(logit_differences(tokens, side) for side in sides))


@pytest.mark.parametrize("task_id", tasks.ids())
def test_positives_are_answered_and_negatives_are_as_described(smollm2: Any, task_id: str) -> None:
    tokens = tokenize(tasks.get(task_id).build(smollm2.tokenizer, N), smollm2.tokenizer)
    check = answered(smollm2, tokens)
    share, low, high = EXPECTED[task_id]
    assert check.share_right >= share
    assert low < check.negative_logit_diff < high
    assert check.positive_logit_diff > check.negative_logit_diff + 1


def test_swapped_names_flip_the_answer(smollm2: Any) -> None:
    tokens = tokenize(tasks.get("ioi").build(smollm2.tokenizer, 12, negative="swapped"), smollm2.tokenizer)
    check = answered(smollm2, tokens)
    assert check.negative_share_right < 0.1
    assert check.negative_logit_diff == pytest.approx(-check.positive_logit_diff, abs=2.5)


@pytest.mark.parametrize("task_id", tasks.ids())
def test_500_different_pairs_for_this_tokenizer(smollm2: Any, task_id: str) -> None:
    task = tasks.get(task_id)
    for negative in task.negatives:
        pairs = task.build(smollm2.tokenizer, 500, negative=negative)
        assert len(set(pairs)) == 500
    assert tokenize(pairs, smollm2.tokenizer).equal_lengths


def test_digits_decide_one_by_one_for_this_tokenizer(smollm2: Any) -> None:
    pairs = tasks.get("greater-than").build(smollm2.tokenizer, 50)
    assert {len(answer) for pair in pairs for answer in pair.answers + pair.wrong_answers} == {1}
    tokens = tokenize(pairs, smollm2.tokenizer)
    assert not tokens.bos
    # The two last digits of the first year, at most: 01 shares a digit with some.
    assert np.unique([len(tokens.changed_positions(i)) for i in range(50)]).tolist() == [1, 2]
