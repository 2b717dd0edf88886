"""Attacks by what files hold: more than memory when unpacked, pipes where a library would wait, text that is code."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headcodes.circuit.circuit import Circuit
from headcodes.circuit.formats import load_circuit
from headcodes.comparison import page as comparison_page
from headcodes.comparison.rows import Row
from headcodes.errors import HeadcodesError
from headcodes.models.load import load_model
from headcodes.prompts import tables
from headcodes.prompts.files import read_pairs
from headcodes.prompts.pairs import PromptPairs
from headcodes.report import hub, page
from headcodes.report.folders import read_runs
from headcodes.store import parquet
from headcodes.store.cells import SCHEMA
from hostile_files import ROW, misbehaves
from made_report import HOSTILE, result

Record = Callable[[str, Any], None]


def shown(folder: Path) -> None:
    page.render(read_runs([folder]))


def test_pipes_inside_folders(tmp_path: Path, tiny_folder: Any, record_attacks: Record) -> None:
    """What a library opens by name is looked at first: a pipe has no end, and nobody writes into it."""
    result().save(tmp_path / "run", top=2)
    model = tiny_folder(tmp_path / "model")
    found = []
    for whole, name, read in (
        *((tmp_path / "run", f"{part}.json", shown) for part in ("result", "circuit", "prompts", "evaluation")),
        *((tmp_path / "run", f"{part}.safetensors", shown) for part in ("scores", "attention")),
        *((model, name, load_model) for name in ("config.json", "model.safetensors", "tokenizer.json")),
    ):
        folder = tmp_path / f"with-a-pipe-{name}"
        shutil.copytree(whole, folder)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        found.append((misbehaves(read, folder, folder.name), name))
    circuit = Circuit.from_heads([(0, 0)], n_layers=1, n_heads=1, edge_scores_file="pipe").as_dict()
    (tmp_path / "circuit.json").write_text(json.dumps(circuit))
    os.mkfifo(tmp_path / "pipe")
    found.append((misbehaves(load_circuit, tmp_path / "circuit.json", "pipe"), "edge scores"))
    record_attacks("pipes inside folders", found)


def test_files_that_unpack_to_more_than_memory(
    tmp_path: Path, record_attacks: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal values take no room in a Parquet file. The limits are smaller here, to be soon reached."""
    monkeypatch.setattr(parquet, "MAX_BYTES", 1 << 24)
    monkeypatch.setattr(tables, "MOST_PROMPTS", 10_000)
    monkeypatch.setattr(parquet, "MAX_VALUES", 1 << 16)

    def equal(value: str, n: int) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value]))

    found = []
    for n, size in ((10_001, 1), (1000, 200_000)):
        path = tmp_path / f"{n}.parquet"
        columns = {name: equal("x" * size, n) for name in ("clean", "corrupt", "answer")}
        pq.write_table(pa.table(columns), path, compression="zstd")
        assert path.stat().st_size < 100_000
        found.append((misbehaves(unpack, path, f"{path.name}: "), f"{n} rows of {size}"))
    (tmp_path / "store" / "cells").mkdir(parents=True)
    cell = tmp_path / "store" / "cells" / f"{ROW['identity']}.parquet"
    row = pa.Table.from_pylist([{name: ROW.get(name) for name in SCHEMA.names}], SCHEMA)
    n = 1 << 16
    scores = pa.ListArray.from_arrays(pa.array([0, n], pa.int32()), pa.array(np.zeros(n)))
    for what, table in {
        "scores": row.set_column(SCHEMA.get_field_index("head_scores"), SCHEMA.field("head_scores"), scores),
        "rows": row.take(pa.array(np.zeros(257, np.int64))),
    }.items():
        pq.write_table(table, cell, compression="zstd")
        with pytest.warns(match="values of|rows, where"):
            found.append((misbehaves_loudly(tmp_path / "store"), what))
    path = tmp_path / "nested.parquet"
    many = pa.ListArray.from_arrays(pa.array([0, 1000], pa.int32()), equal("x" * 200_000, 1000))
    text = pa.array(["x"])
    pq.write_table(pa.table({"clean": text, "corrupt": text, "answers": many}), path, compression="zstd")
    found.append((misbehaves(unpack, path, f"{path.name}: "), "a list of 1000 times 200000"))
    record_attacks("files that unpack to more than memory", found)


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\n", "\x00", "\x9b2J", "\uffff"])
def test_names_that_command_a_terminal_are_refused_where_they_come_in(name: str) -> None:
    for made in (
        lambda: PromptPairs((), name, "abc"),
        lambda: PromptPairs((), "ioi", name),
        lambda: load_model(name),
        *(partial(Circuit.from_heads, [(0, 0)], n_layers=1, n_heads=1, **{what: name}) for what in NAMES),
    ):
        with pytest.raises(HeadcodesError, match="no control characters") as caught:
            made()
        assert str(caught.value).isprintable()


NAMES = ("model", "task", "method")


def unpack(path: Path) -> None:
    read_pairs(path)
    raise AssertionError("unpacked")


def misbehaves_loudly(folder: Path) -> str | None:
    from headcodes.scan import load_store

    return None if load_store(folder).num_rows == 0 else "believed"


class Elements(HTMLParser):
    """The elements of a page, in order, with the names of their attributes: what text from outside must not change."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


def test_text_that_is_code_on_every_page(record_attacks: Record) -> None:
    """Pages of hostile names have the elements of the same pages with plain names, and no others."""

    def run(name: str, **changes: Any) -> Any:
        made = result(model=name, revision=f"{name}1", backend=name, dtype=name, **changes)
        pairs = made.pairs
        texts = tuple(type(pair)(name, name, (name,), (name,)) for pair in pairs)
        made.versions[name] = name
        return type(made)(**vars(made) | {"pairs": type(pairs)(texts, f"{name}{changes.get('seed', 0)}", name)})

    def whole_page(name: str) -> str:
        runs = [run(name, seed=seed).record(top=2) for seed in (1, 2)]
        later = [type(each)(**vars(each) | {"document": {**each.document, "revision": f"{name}2"}}) for each in runs]
        return page.render([*runs, *later])

    def comparison(name: str) -> str:
        row = Row(**{"model": name, "task": name, "method": name, "truth": name, "status": "failed", "note": name}
                  | {"level": "node", "seed": 0, "n_pairs": 1})  # fmt: skip
        return comparison_page.render([row], name)

    pages: dict[str, Callable[[str], str]] = {
        "report": whole_page,
        "comparison": comparison,
        "notebook": lambda name: run(name)._repr_html_(),
    }
    found = []
    for kind, render in pages.items():
        same = Elements(render(HOSTILE)).found == Elements(render("plain")).found
        found.append((None if same else "other elements", kind))
    card = hub.card(run(HOSTILE.replace("\ud800", "")).record(top=2), "me/repo", picture=False)
    _, front, text = card.split("---\n", 2)
    inside = "<" in text or front.count("\n") != 2
    found.append(("markup" if inside else None, "card"))
    record_attacks("text that is code", found)
