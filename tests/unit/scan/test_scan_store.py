"""The store: whole files or none, damage named, readable by others."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.scan import load_store
from headcodes.scan.log import ScanLog, json_line, log_of
from headcodes.scan.plan import Plan
from headcodes.scan.run import Work, survey
from headcodes.store import cells
from headcodes.store.cells import SCHEMA, Store, statuses

CODES = np.arange(12, dtype=np.int32).reshape(4, 3)


def row(identity: str, **changes: Any) -> dict[str, Any]:
    return {
        "identity": identity,
        "status": "done",
        "model": "m",
        "task": "ioi",
        "method": "paper",
        "seed": 1,
        "head_scores": [0.5, float("nan"), 1e-300],
        "timings_s": [("total", 1.5), ("capture", 0.5)],
        "versions": [("torch", "2")],
        "peak_memory_bytes": 1 << 30,
    } | changes


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    for name in ("aa", "bb", "cc"):
        made.write(row(name), {"codes": CODES})
    return made


def test_rows_come_back_bit_equal(store: Store) -> None:
    table = load_store(store.folder)
    assert table.schema.equals(SCHEMA)
    assert table.column("identity").to_pylist() == ["aa", "bb", "cc"]
    scores = np.array(table.column("head_scores")[0].as_py())
    assert scores.tobytes() == np.array([0.5, np.nan, 1e-300]).tobytes()
    from safetensors.numpy import load_file

    arrays = load_file(store.arrays / "aa.safetensors")
    assert np.array_equal(arrays["codes"], CODES)


def test_others_read_it_without_us(store: Store) -> None:
    duckdb, pandas = pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    found = duckdb.sql(
        f"select identity, head_scores[1], timings_s['total'] from '{store.cells}/*.parquet' order by identity"
    ).fetchall()
    assert found == [("aa", 0.5, 1.5), ("bb", 0.5, 1.5), ("cc", 0.5, 1.5)]
    assert list(pandas.read_parquet(store.cells).sort_values("identity").identity) == ["aa", "bb", "cc"]


def test_polars_reads_it(store: Store) -> None:
    polars = pytest.importorskip("polars")
    table = polars.read_parquet(f"{store.cells}/*.parquet")
    assert table["identity"].to_list() == ["aa", "bb", "cc"]
    assert table["head_scores"].list.get(2).to_list() == [1e-300] * 3
    assert table.filter(polars.col("method") == "paper")["peak_memory_bytes"].sum() == 3 << 30


@pytest.mark.filterwarnings("ignore::headcodes.errors.HeadcodesWarning")
def test_no_flipped_byte_changes_what_is_read(store: Store) -> None:
    path = store.cells / "bb.parquet"
    whole, truth = path.read_bytes(), str(load_store(store.folder).to_pylist()[1])
    n_found = 0
    for place in range(0, len(whole), 61):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        if statuses(store.folder, ["bb"]):
            # It may have hit what nobody reads.
            assert str(load_store(store.folder).to_pylist()[1]) == truth, place
        else:
            n_found += 1
            assert load_store(store.folder).num_rows == 2
    assert n_found > len(whole) // 61 // 2


def test_no_flipped_bit_of_a_footer_ends_the_process(store: Store) -> None:
    """One in a hundred did: pyarrow throws where nobody can catch it when a column's entry is damaged."""
    path = store.cells / "bb.parquet"
    whole = path.read_bytes()
    n_footer = int.from_bytes(whole[-8:-4], "little")
    places = np.random.default_rng(0).integers(0, 8 * n_footer, 500)
    for place in places.tolist():
        changed = bytearray(whole)
        changed[-8 - n_footer + place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with suppress(*cells.DAMAGE):
            cells._read_table(path)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_cut_file_is_named_and_left_out(store: Store, keep: int) -> None:
    path = store.cells / "bb.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.warns(HeadcodesWarning, match=r"to be done again: .*bb\.parquet"):
        assert statuses(store.folder, ["aa", "bb"]) == {"aa": "done"}
    with pytest.warns(HeadcodesWarning, match=r"left out: .*bb\.parquet"):
        assert load_store(store.folder).column("identity").to_pylist() == ["aa", "cc"]


def test_damaged_arrays_are_found(store: Store) -> None:
    path = store.arrays / "cc.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(HeadcodesWarning, match=r"cc\.parquet.*safetensors is not what its row says"):
        assert statuses(store.folder, ["bb", "cc"]) == {"bb": "done"}
    path.unlink()
    with pytest.warns(HeadcodesWarning, match=r"cc\.parquet"):
        assert statuses(store.folder, ["cc"]) == {}


def test_a_file_under_another_name_is_damage(store: Store) -> None:
    store.write(row("aa"), {})
    (store.cells / "aa.parquet").rename(store.cells / "dd.parquet")
    with pytest.warns(HeadcodesWarning, match=r"dd\.parquet"):
        assert statuses(store.folder, ["aa", "dd"]) == {}


@pytest.mark.parametrize("n_before", [0, 1])
def test_a_full_disk_ends_in_one_message_and_leaves_whole_cells(
    store: Store, monkeypatch: pytest.MonkeyPatch, n_before: int
) -> None:
    calls = iter(range(99))

    def full(_handle: int) -> None:
        if next(calls) >= n_before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(HeadcodesError, match=r"No space left on device.*finished cells are safe"):
            store.write(row("dd"), {"codes": CODES})
    assert load_store(store.folder).num_rows == 3
    assert not [path for path in store.folder.rglob("*") if path.suffix == ".part"]
    assert statuses(store.folder, ["aa", "bb", "cc", "dd"]) == dict.fromkeys(("aa", "bb", "cc"), "done")


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadcodesError, match="Not a directory"):
        Store(tmp_path / "file" / "store")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write everywhere else
    with pytest.raises(HeadcodesError, match="Read-only file system"):
        Store(tmp_path / "store")


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(store: Store) -> None:
    old, young = store.cells / ".dd.parquet.x.part", store.arrays / ".ee.safetensors.y.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    Store(store.folder)
    assert not old.exists()
    assert young.exists()
    assert load_store(store.folder).num_rows == 3


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(HeadcodesError, match="a store of a scan"):
        load_store(tmp_path)


def test_surveying_leaves_no_trace_and_counts(tmp_path: Path) -> None:
    plan = Plan(models=(("planted-ioi", None),), seeds=(0, 1, 2), methods=("mean-diff",), device="cpu")
    place = tmp_path / "store"
    work = survey(plan, place)
    assert (len(work.jobs), work.n_cells, work.n_done, work.n_failed) == (3, 3, 0, 0)
    assert not place.exists()
    store = Store(place)
    store.write(row(work.jobs[0][0]), {})
    store.write(row(work.jobs[1][0], status="failed", error="why"), {})
    after = survey(plan, place)
    assert (after.jobs, after.n_done, after.n_failed) == (work.jobs[2:], 1, 1)
    again = survey(plan, place, retry_failed=True)
    assert (again.jobs, again.n_done, again.n_failed) == (work.jobs[1:], 1, 0)


def work(n: int = 3) -> Work:
    cells = list(Plan(models=(("m", None),), seeds=tuple(range(n)), device="cpu").cells())
    return Work(tuple((str(cell.seed), cell) for cell in cells), n + 2, 1, 1)


FAILED = {"status": "failed", "error": "no such model", "timings_s": None}


def test_plain_lines_say_an_error_once(capsys: pytest.CaptureFixture[str]) -> None:
    with log_of(work()) as progress:
        for seed, changes in enumerate(({}, FAILED, FAILED)):
            progress.started(work().jobs[seed][1])
            progress.finished(row(str(seed), seed=seed, revision=None, **changes))
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines() == [
        "headcodes: [1/3] m ioi paper seed 0: 1.50 s",
        "headcodes: [2/3] m ioi paper seed 1: failed: no such model",
        "headcodes: [3/3] m ioi paper seed 2: failed for the same reason",
    ]
    summary = progress.summary()
    assert "2 of 5 cells done, 1 of them now" in summary  # one was done before
    assert "1 failed before" in summary
    assert "2 cells failed: no such model" in summary


def test_the_live_view_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    with log_of(work()) as progress:
        assert type(progress) is not ScanLog
        progress.started(work().jobs[0][1])
        progress.finished(row("0", revision=None))
        progress.finished(row("1", revision="[red]", **FAILED))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "2/3" in text
    assert "1 cells failed" in text or "1 cell failed" in text
    assert "1.0 GiB at most" in text
    assert "m@[red] ioi paper seed 1: failed: no such model" in text


def test_json_lines_are_json() -> None:
    found = json.loads(json_line(row("aa", revision=None)))
    assert found["head_scores"] == [0.5, None, 1e-300]
    assert found["timings_s"] == {"total": 1.5, "capture": 0.5}
