"""The task check against figures worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from headcodes import HeadcodesError, HeadcodesWarning
from headcodes.prompts.task_check import check_task, logit_differences
from made_pairs import made


def token_pairs(rights, wrongs):
    return made([[1]] * len(rights), [[2]] * len(rights), rights, wrongs)


def logits(*rows):
    return [torch.tensor(row) for row in rows]


def test_logit_differences_weigh_sets_by_logsumexp():
    tokens = token_pairs([[5, 6], [5]], [[7], [6, 7]])
    found = logit_differences(tokens, logits([1.0, 1.0, 0.0], [0.0, 0.0, 0.0]))
    np.testing.assert_allclose(found, [1 + math.log(2), -math.log(2)], rtol=1e-15)


def test_large_logits_do_not_overflow():
    tokens = token_pairs([[5]], [[6]])
    assert logit_differences(tokens, logits([2e4, 1e4])) == pytest.approx([1e4])


def test_even_odds_are_no_right_answer():
    check = check_task("mine", np.array([0.0, 1.0, 1.0, 1.0, 1.0]), np.array([0.0, -1.0, -1.0, 0.5, -1.0]))
    assert check.answered.tolist() == [False, True, True, True, True]
    assert (check.share_right, check.negative_share_right) == (0.8, 0.2)


def test_figures():
    tokens = token_pairs([[5]] * 5, [[6]] * 5)
    clean = logits([2.0, 0.0], [1.0, 0.0], [4.0, 0.0], [3.0, 0.0], [0.0, 5.0])
    corrupt = logits([0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 3.0], [0.0, 2.0])
    check = check_task("mine", logit_differences(tokens, clean), logit_differences(tokens, corrupt))
    assert check.as_dict() == {
        "n_pairs": 5,
        "share_right": 0.8,
        "positive_logit_diff": 1.0,
        "negative_logit_diff": -1.0,
        "negative_share_right": 0.2,
    }
    assert check.answered.tolist() == [True, True, True, True, False]
    json.dumps(check.as_dict())


def test_a_task_the_model_hardly_does_is_warned_of():
    tokens = token_pairs([[5]] * 4, [[6]] * 4)
    clean = logits([1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    differences = logit_differences(tokens, clean)
    with pytest.warns(HeadcodesWarning, match="75% of the 4 positives"):
        check_task("mine", differences, differences)


def test_logits_of_other_tokens_are_refused():
    with pytest.raises(HeadcodesError, match="3 logits for 1 \\+ 1"):
        logit_differences(token_pairs([[5]], [[6]]), logits([0.0, 0.0, 0.0]))
