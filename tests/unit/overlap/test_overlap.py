"""Overlap counts against sets in plain Python, and the laws that any such count obeys."""

from __future__ import annotations

import itertools
import signal
import threading
import time

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headcodes import _core
from headcodes.errors import HeadcodesError
from headcodes.overlap.counts import MAX_CODE, MAX_COMPONENTS, instruction_set, pair_unique_counts, unique_counts

EXAMPLE_POS = np.array([[1, 4, 2, 7], [1, 5, 2, 7], [3, 5, 6, 0]], dtype=np.int32)
EXAMPLE_NEG = np.array([[1, 4, 2, 0], [2, 5, 2, 7], [3, 4, 2, 0]], dtype=np.int32)


def oracle_nodes(pos, neg, dead=None):
    """Counts and explained prompts, straight from the definition."""
    unique, explained = [], []
    for c in range(pos.shape[1]):
        alone = set(pos[:, c].tolist()) - set(neg[:, c].tolist()) - {dead}
        unique.append(len(alone))
        explained.append(sum(code in alone for code in pos[:, c].tolist()))
    return np.array(unique, dtype=int), np.array(explained, dtype=int)


def oracle_pairs(pos, neg, dead=None, layers=None):
    n = pos.shape[1]
    unique, explained = np.zeros((n, n), dtype=int), np.zeros((n, n), dtype=int)
    for i, j in itertools.permutations(range(n), 2):
        if layers is not None and not layers[i] < layers[j]:
            continue
        both_pos = list(zip(pos[:, i].tolist(), pos[:, j].tolist(), strict=True))
        alone = set(both_pos) - set(zip(neg[:, i].tolist(), neg[:, j].tolist(), strict=True))
        alone = {pair for pair in alone if dead not in pair}
        unique[i, j] = len(alone)
        explained[i, j] = sum(pair in alone for pair in both_pos)
    return unique, explained


def check(pos, neg, dead=None, layers=None, threads=2):
    nodes = unique_counts(pos, neg, dead=dead, explained=True, threads=threads)
    pairs = pair_unique_counts(pos, neg, dead=dead, layers=layers, explained=True, threads=threads)
    for got, want in zip(nodes, oracle_nodes(pos, neg, dead), strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(pairs, oracle_pairs(pos, neg, dead, layers), strict=True):
        np.testing.assert_array_equal(got, want)
    # Asking for less takes another way through the core.
    np.testing.assert_array_equal(unique_counts(pos, neg, dead=dead, threads=threads), nodes[0])
    np.testing.assert_array_equal(pair_unique_counts(pos, neg, dead=dead, layers=layers, threads=threads), pairs[0])


@st.composite
def sides(draw, max_prompts=12, max_components=6, n_codes=4):
    n_component = draw(st.integers(0, max_components))
    codes = st.integers(-1, n_codes - 1)
    shapes = [(draw(st.integers(0, max_prompts)), n_component) for _ in range(2)]
    return tuple(draw(hnp.arrays(np.int32, shape, elements=codes)) for shape in shapes)


def test_worked_example():
    np.testing.assert_array_equal(unique_counts(EXAMPLE_POS, EXAMPLE_NEG), [0, 0, 1, 0])
    want = [[0, 2, 1, 1], [2, 0, 1, 2], [1, 1, 0, 1], [1, 2, 1, 0]]
    np.testing.assert_array_equal(pair_unique_counts(EXAMPLE_POS, EXAMPLE_NEG), want)
    np.testing.assert_array_equal(unique_counts(EXAMPLE_POS, EXAMPLE_NEG, dead=0), [0, 0, 1, 0])
    want = [[0, 2, 1, 1], [2, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    np.testing.assert_array_equal(pair_unique_counts(EXAMPLE_POS, EXAMPLE_NEG, dead=0), want)


@given(sides(), st.sampled_from([1, 2, 3]))
@settings(deadline=None, max_examples=150)
def test_small_against_sets(pair, threads):
    pos, neg = pair
    check(pos, neg, dead=-1, threads=threads)
    check(pos + 1, neg + 1, threads=threads)


def skewed(rng, n_prompt, n_component, n_codes, strength):
    """Codes as real runs have them: every head has its own few favourites."""
    weights = np.arange(1, n_codes + 1) ** -float(strength)
    codes = rng.choice(n_codes, size=(n_prompt, n_component), p=weights / weights.sum())
    return np.array([rng.permutation(n_codes) for _ in range(n_component)])[np.arange(n_component), codes]


@pytest.mark.parametrize("dead", [None, -1])
@pytest.mark.parametrize(
    ("n_pos", "n_neg", "n_component", "n_codes", "strength"),
    [
        (40, 40, 70, 200, 0),
        (130, 90, 66, 12, 0),
        (150, 150, 40, 25, 1.5),
        (300, 200, 20, 200, 0),  # several words of bits
        (400, 30, 12, 600, 0),  # more codes than a byte tells apart
        (300, 300, 12, 2000, 0.7),
        (1, 1, 40, 3, 0),
        (0, 9, 5, 3, 0),
        (9, 0, 5, 3, 0),
        (260, 260, 16, 1, 0),
    ],
)
def test_sizes_against_sets(n_pos, n_neg, n_component, n_codes, strength, dead):
    rng = np.random.default_rng(n_pos + n_codes)
    codes = skewed(rng, n_pos + n_neg, n_component, n_codes, strength)
    if dead is not None:
        codes[rng.random(codes.shape) < rng.random(n_component)] = dead
    layers = np.sort(rng.integers(0, 4, n_component))
    pos, neg = codes[:n_pos].astype(np.int32), codes[n_pos:].astype(np.int32)
    check(pos, neg, dead=dead)
    check(pos, neg, dead=dead, layers=layers, threads=3)


@pytest.mark.parametrize("isa", ["simd128", "avx2", "avx512"])
def test_heads_of_every_kind_together(monkeypatch, isa):
    if isa not in _core.isas():
        pytest.skip(f"this machine does not run {isa}")
    monkeypatch.setenv("HEADCODES_ISA", isa)
    rng = np.random.default_rng(1)
    kinds = [
        skewed(rng, 500, 9, n_codes, s) for n_codes, s in [(1, 0), (5, 1), (40, 0), (200, 0), (900, 0), (60_000, 0)]
    ]
    codes = np.concatenate(kinds, axis=1)[:, rng.permutation(54)].astype(np.int32)
    codes[rng.random(codes.shape) < 0.05] = -1
    check(codes[:280], codes[280:], dead=-1)


# Laws.


@given(sides(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_names_and_order_do_not_matter(pair, random):
    pos, neg = pair
    unique, pairs = unique_counts(pos, neg, dead=-1), pair_unique_counts(pos, neg, dead=-1)
    names = np.array([*random.sample(range(MAX_CODE + 1), 4), -1], dtype=np.int32)
    rows_pos = random.sample(range(len(pos)), len(pos))
    rows_neg = random.sample(range(len(neg)), len(neg))
    heads = random.sample(range(pos.shape[1]), pos.shape[1])
    pos, neg = names[pos][rows_pos][:, heads], names[neg][rows_neg][:, heads]
    np.testing.assert_array_equal(unique_counts(pos, neg, dead=-1), unique[heads])
    np.testing.assert_array_equal(pair_unique_counts(pos, neg, dead=-1), pairs[np.ix_(heads, heads)])


@given(sides(), st.integers(0, 11))
@settings(deadline=None, max_examples=60)
def test_repeats_and_subsets(pair, k):
    pos, neg = pair
    unique, pairs = unique_counts(pos, neg, dead=-1), pair_unique_counts(pos, neg, dead=-1)
    twice = np.concatenate([pos, pos[:k]]), np.concatenate([neg, neg[:k]])
    np.testing.assert_array_equal(unique_counts(*twice, dead=-1), unique)
    np.testing.assert_array_equal(pair_unique_counts(*twice, dead=-1), pairs)
    # Fewer positives never give more, fewer negatives never fewer.
    assert (unique_counts(pos[:k], neg, dead=-1) <= unique).all()
    assert (pair_unique_counts(pos[:k], neg, dead=-1) <= pairs).all()
    assert (unique_counts(pos, neg[:k], dead=-1) >= unique).all()
    assert (pair_unique_counts(pos, neg[:k], dead=-1) >= pairs).all()


@given(sides(n_codes=8))
@settings(deadline=None, max_examples=60)
def test_swapped_sides_share_the_rest(pair):
    pos, neg = pair
    forth, back = unique_counts(pos, neg, dead=-1), unique_counts(neg, pos, dead=-1)
    for c in range(pos.shape[1]):
        codes = set(pos[:, c].tolist()) - {-1}, set(neg[:, c].tolist()) - {-1}
        assert forth[c] + len(codes[0] & codes[1]) == len(codes[0])
        assert back[c] + len(codes[0] & codes[1]) == len(codes[1])
    assert (unique_counts(pos, pos, dead=-1) == 0).all()
    assert (pair_unique_counts(neg, neg, dead=-1) == 0).all()


def test_threads_do_not_matter():
    # Enough work for several threads to be used.
    rng = np.random.default_rng(5)
    codes = np.concatenate([skewed(rng, 400, 200, n, s) for n, s in [(200, 0), (200, 2), (12, 1)]], axis=1)
    pos, neg = codes[:220].astype(np.int32), codes[180:].astype(np.int32)
    one = pair_unique_counts(pos, neg, dead=0, explained=True, threads=1)
    for threads in (2, 3, 7):
        many = pair_unique_counts(pos, neg, dead=0, explained=True, threads=threads)
        np.testing.assert_array_equal(one[0], many[0])
        np.testing.assert_array_equal(one[1], many[1])
    heads = rng.choice(600, 12, replace=False)
    for got, want in zip(one, oracle_pairs(pos[:, heads], neg[:, heads], dead=0), strict=True):
        np.testing.assert_array_equal(got[np.ix_(heads, heads)], want)


# What callers hand over.


def test_variant_that_cannot_run_is_refused(monkeypatch):
    monkeypatch.setenv("HEADCODES_ISA", "sse9")
    with pytest.raises(HeadcodesError, match=r"HEADCODES_ISA .*simd128.*got sse9"):
        unique_counts(EXAMPLE_POS, EXAMPLE_NEG)
    monkeypatch.setattr(_core, "isas", lambda: ["simd128"])
    monkeypatch.setenv("HEADCODES_ISA", "avx2")
    with pytest.raises(HeadcodesError, match="HEADCODES_ISA"):
        pair_unique_counts(EXAMPLE_POS, EXAMPLE_NEG)


def test_the_former_name_of_a_variant_still_names_it(monkeypatch):
    monkeypatch.setenv("HEADCODES_ISA", "scalar")
    assert instruction_set() == "simd128" == _core.isas()[0]
    check(EXAMPLE_POS.astype(np.int32), EXAMPLE_NEG.astype(np.int32), dead=None)


def test_kind_follows_the_caller():
    pos, neg = torch.from_numpy(EXAMPLE_POS), torch.from_numpy(EXAMPLE_NEG).long()
    nodes, pairs = unique_counts(pos, neg), pair_unique_counts(pos, neg)
    assert nodes.dtype == pairs.dtype == torch.int32
    assert nodes.tolist() == [0, 0, 1, 0]
    assert torch.equal(pairs, pairs.T)
    assert isinstance(unique_counts(EXAMPLE_POS, EXAMPLE_NEG), np.ndarray)
    with pytest.raises(HeadcodesError, match="one kind"):
        unique_counts(pos, EXAMPLE_NEG)


def test_any_layout():
    rng = np.random.default_rng(2)
    pos, neg = rng.integers(0, 9, (30, 20)), rng.integers(0, 9, (20, 20))
    unique, pairs = oracle_nodes(pos, neg)[0], oracle_pairs(pos, neg)[0]
    read_only = pos.astype(np.int32)
    read_only.flags.writeable = False
    unaligned = np.zeros(pos.size * 4 + 1, dtype=np.uint8)[1:].view(np.int32).reshape(pos.shape)
    unaligned[:] = pos
    fields = np.zeros(pos.shape, dtype=[("a", "u2"), ("code", "i4")])
    fields["code"] = pos
    layouts = [
        np.asfortranarray(pos, dtype=np.int32),
        np.repeat(pos.astype(np.int32), 2, axis=1)[:, ::2],
        pos.astype(np.int32)[::-1, ::-1][::-1, ::-1],
        pos[::-1].astype(np.int32)[::-1],
        pos.astype(">i4"),
        pos.astype(np.uint8),
        pos.astype(np.uint64),
        read_only,
        unaligned,
        fields["code"],
    ]
    for layout in layouts:
        np.testing.assert_array_equal(unique_counts(layout, neg), unique)
        np.testing.assert_array_equal(pair_unique_counts(layout, neg), pairs)
    one = np.broadcast_to(np.int32(3), (4, 20))
    assert (unique_counts(one, neg * 0) == 1).all()


@pytest.mark.parametrize(
    ("pos", "neg", "options", "words"),
    [
        (np.zeros(3, int), np.zeros((3, 1), int), {}, "two dimensions"),
        (np.zeros((3, 2), int), np.zeros((3, 1), int), {}, "same components"),
        (np.zeros((3, 1)), np.zeros((3, 1), int), {}, "integer codes"),
        (np.zeros((3, 1), bool), np.zeros((3, 1), int), {}, "integer codes"),
        (np.array([["a"]]), np.zeros((3, 1), int), {}, "integer codes"),
        ([[1], [1, 2]], np.zeros((3, 1), int), {}, "rectangular"),
        (np.array([[0], [-1]]), np.zeros((3, 1), int), {}, r"-1 at pos\[1, 0\]"),
        (np.array([[0], [-1]]), np.array([[-2]]), {"dead": -1}, r"-2 at neg\[0, 0\]"),
        (np.array([[0], [MAX_CODE + 1]]), np.zeros((3, 1), int), {}, r"65536 at pos\[1, 0\]"),
        (np.array([[2**40]]), np.zeros((3, 1), int), {}, "1099511627776"),
        (np.zeros((1, MAX_COMPONENTS + 1), int), np.zeros((1, MAX_COMPONENTS + 1), int), {}, "20,000"),
        (np.zeros((2**20, 1), np.uint8), np.zeros((1, 1), int), {}, "1,048,576"),
        (EXAMPLE_POS, EXAMPLE_NEG, {"dead": 0.5}, "32-bit"),
        (EXAMPLE_POS, EXAMPLE_NEG, {"dead": 2**31}, "32-bit"),
        (EXAMPLE_POS, EXAMPLE_NEG, {"threads": 0}, "threads"),
        (EXAMPLE_POS, EXAMPLE_NEG, {"threads": "2"}, "threads"),
    ],
)
def test_refused(pos, neg, options, words):
    for count in (unique_counts, pair_unique_counts):
        with pytest.raises(HeadcodesError, match=words):
            count(pos, neg, **options)


@pytest.mark.parametrize(
    "layers",
    [
        [0, 1],
        [0.0, 0.0, 1.0, 1.0],
        [[0, 0, 1, 1]],
        [0, 0, 1, 2**32],  # would be layer 0 in 32 bits
        np.array([0, 0, 1, 2**63], np.uint64),
        [-(2**31) - 1, 0, 1, 1],
    ],
)
def test_layers_refused(layers):
    with pytest.raises(HeadcodesError, match="layers"):
        pair_unique_counts(EXAMPLE_POS, EXAMPLE_NEG, layers=layers)


def test_arrays_changed_meanwhile_never_crash():
    rng = np.random.default_rng(3)
    pos = rng.integers(0, 200, (200, 64)).astype(np.int32)
    neg = pos.copy()
    done = threading.Event()

    def scribble():
        while not done.is_set():
            pos[:] = rng.integers(-(2**31), 2**31, pos.shape)
            pos[:] = 5

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(100):
            try:
                counts = pair_unique_counts(pos, neg, threads=2)
            except HeadcodesError:
                continue
            assert ((counts >= 0) & (counts <= 200)).all()
    finally:
        done.set()
        thread.join()


def test_interrupt_is_obeyed():
    rng = np.random.default_rng(4)
    pos, neg = (rng.integers(0, 60_000, (12_000, 1_000)).astype(np.int32) % 1009 for _ in range(2))
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def handler(*_):
        seen.append(time.perf_counter())
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handler)
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            pair_unique_counts(pos, neg)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert len(seen) == 1
