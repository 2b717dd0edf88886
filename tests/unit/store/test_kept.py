"""What the cache keeps: damage is named and made anew, and a cache that cannot be written ends no run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from headcodes.errors import HeadcodesWarning
from headcodes.files import sweep
from headcodes.store.kept import keep_note, keep_tensors, kept_note, kept_tensors

PARTS = {"z": torch.arange(12.0).view(3, 4).bfloat16(), "none": torch.empty(0, 2), "logits": torch.tensor([1, 2])}
ABOUT = {"model": "m", "n_pairs": 3}


def test_what_is_kept_comes_back_bit_for_bit(tmp_path: Path) -> None:
    assert keep_tensors(tmp_path / "new" / "a.safetensors", PARTS, ABOUT)
    found = kept_tensors(tmp_path / "new" / "a.safetensors")
    assert found is not None
    assert found[1] == ABOUT
    assert found[0].keys() == PARTS.keys()
    for name, part in PARTS.items():
        assert found[0][name].dtype == part.dtype
        assert torch.equal(found[0][name], part)
    assert keep_note(tmp_path / "n.json", ABOUT)
    assert kept_note(tmp_path / "n.json") == ABOUT
    assert kept_tensors(tmp_path / "none") is None
    assert kept_note(tmp_path / "none") is None


@pytest.mark.parametrize("kind", ["tensors", "note"])
def test_no_flipped_bit_and_no_lost_byte_is_believed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    read: Any = kept_tensors if kind == "tensors" else kept_note
    if kind == "tensors":
        keep_tensors(path, PARTS, ABOUT)
    else:
        keep_note(path, ABOUT)
    whole = path.read_bytes()
    n_named = 0
    damaged = [whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :] for i in range(len(whole))]
    for content in (*damaged, b"", whole[:-1], whole[: len(whole) // 2], whole + b"x"):
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = read(path)
        if found is None:
            n_named += any(str(path) in str(warning.message) for warning in said)
            continue
        # What may pass is damage that changes nothing that is read.
        assert found == ABOUT if kind == "note" else found[1] == ABOUT
        if kind == "tensors":
            assert all(torch.equal(found[0][name], part) for name, part in PARTS.items())
    assert n_named > 0.9 * len(whole)


def test_a_cache_that_cannot_be_written_is_a_warning_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(HeadcodesWarning, match="result itself is whole"):
        assert not keep_tensors(tmp_path / "file" / "below" / "a", PARTS, ABOUT)
    # Further warnings would be errors here.
    assert not keep_tensors(tmp_path / "file" / "below" / "a", PARTS, ABOUT)
    assert not keep_note(tmp_path / "file" / "below" / "b", ABOUT)


def test_a_full_disk_is_a_warning_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(HeadcodesWarning, match="No space left"):
        assert not keep_tensors(tmp_path / "a", PARTS, ABOUT)
    assert list(tmp_path.iterdir()) == []
    assert sweep(tmp_path) == []
