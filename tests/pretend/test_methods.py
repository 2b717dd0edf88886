"""Every method finds on a pretended device, and on two, what it finds on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.conftest import FAMILIES
from tests.pretend.device import pretended

from headcodes.methods import METHODS

PLACES = ("pretend:1", "both")


def check(scores: Callable[..., np.ndarray], family: str, method: str, place: str, level: str) -> None:
    want = scores(family, method, "cpu", level)
    with pretended() as log:
        found = scores(family, method, place, level)
    assert log.n_operations
    # Codes may flip where two latents are as good as equal; on one CPU the sums are the same.
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4 * max(1e-12, float(np.abs(want).max())))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_nodes(scores: Callable[..., np.ndarray], family: str, method: str, place: str) -> None:
    check(scores, family, method, place, "node")


@pytest.mark.parametrize("method", ["default", "contrast", "dla", "patching"])
def test_an_unembedding_tied_to_an_embedding_elsewhere(scores: Callable[..., np.ndarray], method: str) -> None:
    check(scores, "gpt2", method, "norm behind", "node")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", ["paper", "eap", "eap-ig-inputs"])
def test_edges(scores: Callable[..., np.ndarray], method: str, place: str) -> None:
    check(scores, "gpt2", method, place, "edge")
