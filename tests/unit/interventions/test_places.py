"""Parts patched at single places, by a walk through the layers and by whole forward passes."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest

from headcodes.errors import HeadcodesWarning
from headcodes.interventions.places import effects_by_place
from headcodes.prompts.alignment import align
from made_pairs import token_pairs


def test_places_are_patched_alike_by_a_walk_and_by_whole_passes(tiny_model: Any) -> None:
    model, pairs = tiny_model("llama"), token_pairs(3)
    alignment = align(pairs)
    walked = effects_by_place(model, pairs, [(0, 1), (2, None)], alignment)
    assert np.abs(walked).max() > 0.01
    with (
        mock.patch("headcodes.interventions.walk.why_not_walked", return_value="we said so"),
        pytest.warns(HeadcodesWarning, match="we said so"),
    ):
        whole = effects_by_place(model, pairs, [(0, 1), (2, None)], alignment)
    np.testing.assert_allclose(whole, walked, atol=1e-4)
