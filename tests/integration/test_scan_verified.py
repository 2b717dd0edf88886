"""Heads and paths patched exactly in a scan: its store holds what ``discover`` finds, and the page shows it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

import headcodes
from headcodes.errors import HeadcodesError
from headcodes.evaluation.diff import diff
from headcodes.report.page import write_report
from headcodes.report.stores import read_store
from headcodes.scan import load_store, scan
from headcodes.scan.plan import Plan
from headcodes.store.cells import Store
from scan_command import planted_plan


def test_a_cell_confirms_what_discover_confirms(tmp_path: Path) -> None:
    plan = planted_plan(methods="default,eap", verify="auto")
    assert [row["status"] for row in scan(plan, tmp_path / "store")] == ["done", "done"]
    rows = {row["method"]: row for row in load_store(tmp_path / "store").to_pylist()}
    records = {record.document["method"]: record for record in read_store(tmp_path / "store")}
    model = headcodes.load_model("planted-ioi", dtype="float32", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = headcodes.tasks.get("ioi").build(model.tokenizer, n=12, seed=0)
        result = headcodes.discover(model, pairs, method="default", seed=1, threads=1)
    expected, record = result.circuit(), records["default"]
    assert expected.edges
    assert record.circuit == expected
    assert diff(record.circuit, expected).effects_apart == []
    shown = record.head_values["exact effect"]
    assert all(shown[head] == expected.effects[f"a{head[0]}.h{head[1]}"]["effect"] for head in expected.heads)
    assert "--verify auto" in record.command
    assert "verify='auto'" in record.document["whole_page"]
    # A method that patches nothing unless told how many heads has the circuit of its scores.
    assert rows["eap"]["circuit"] is None
    assert not records["eap"].circuit.effects
    assert write_report([tmp_path / "store"], tmp_path / "page.html") == 2


def test_a_scan_patches_nothing_unless_asked(tmp_path: Path) -> None:
    (row,) = scan(planted_plan(methods="default"), tmp_path)
    assert (row["verify"], row["circuit"], dict(row["timings_s"]).get("verify")) == ("off", None, None)


def test_a_plan_file_may_say_off_in_the_way_of_yaml(tmp_path: Path) -> None:
    for text, expected in (("off", "off"), ("auto", "auto"), ("30", "30")):
        (tmp_path / "plan.yaml").write_text(f"models: [planted-ioi]\nverify: {text}\n")
        assert Plan.from_yaml(tmp_path / "plan.yaml").verify == expected
    (tmp_path / "plan.yaml").write_text("models: [planted-ioi]\nverify: 0\n")
    with pytest.raises(HeadcodesError, match="line 2"):
        Plan.from_yaml(tmp_path / "plan.yaml")


def test_a_circuit_that_is_not_of_its_cell_is_refused_in_one_line(tmp_path: Path) -> None:
    (row,) = scan(planted_plan(methods="default", verify="3"), tmp_path / "store")
    circuit = json.loads(row["circuit"])
    for place, text in enumerate(("{", "[]", json.dumps(circuit | {"method": "other"}))):
        store = Store(tmp_path / str(place))
        store.write(row | {"circuit": text, "arrays_sha256": None}, {})
        with pytest.raises(HeadcodesError, match="a cell of a store must be whole"):
            read_store(store.folder)
