"""Draws of the pairs in a scan: what its rows say is what ``discover`` says, and the page shows it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

import headcodes
from headcodes.errors import HeadcodesError
from headcodes.report.stores import read_store
from headcodes.scan import load_store, scan
from headcodes.store.cells import Store
from scan_command import planted_plan

FIELDS = ("stable", "n_resamples", "score_low", "score_high", "selection_frequency")


def test_a_cell_says_what_discover_says(tmp_path: Path) -> None:
    plan = planted_plan(methods="eap,act-norm", stable=0.9)
    assert [row["status"] for row in scan(plan, tmp_path)] == ["done", "done"]
    rows = {row["method"]: row for row in load_store(tmp_path).to_pylist()}
    records = {record.document["method"]: record for record in read_store(tmp_path)}
    model = headcodes.load_model("planted-ioi", dtype="float32", device="cpu")
    for method in ("eap", "act-norm"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pairs = headcodes.tasks.get("ioi").build(model.tokenizer, n=12, seed=0)
            result = headcodes.discover(model, pairs, method=method, seed=1, stable=0.9, threads=1)
        document, record = result.as_json(), records[method]
        assert {name: rows[method][name] for name in FIELDS} == {name: document[name] for name in FIELDS}
        assert record.circuit.nodes == result.circuit().nodes
        assert np.array_equal(record.head_values["selected"].ravel(), document["selection_frequency"])
        assert {"score: low", "score: high"} <= set(record.head_values)
        assert "--stable 0.9" in record.command
        assert "stable=0.9" in record.document["whole_page"]
    kept = {method: len(record.circuit.nodes) for method, record in records.items()}
    assert 0 < kept["eap"] < 20  # fewer than the 20 best: planted heads alone score above 0


def test_a_cell_whose_draws_are_damaged_is_refused_in_one_line(tmp_path: Path) -> None:
    (row,) = scan(planted_plan(methods="eap", stable=0.9), tmp_path / "store")
    for name, value in (("score_low", row["score_low"][:-1]), ("stable", None), ("score_high", [np.nan] * 48)):
        store = Store(tmp_path / name)
        store.write(row | {name: value, "arrays_sha256": None}, {})
        with pytest.raises(HeadcodesError, match="a cell of a store must be whole"):
            read_store(store.folder)
