"""Attacks on folders: runs, stores, autoencoders and the cache, damaged, mixed or not ours; and on what is written."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headcodes.codes.sae import SparseAutoencoder
from headcodes.errors import HeadcodesError
from headcodes.files import atomic_write
from headcodes.report import page
from headcodes.report.folders import read_runs
from headcodes.store.cells import SCHEMA
from headcodes.store.folders import run_folder
from headcodes.store.kept import keep_note, keep_tensors, kept_note, kept_tensors
from hostile_files import ROW, device, flipped_or_cut, misbehaves, variants
from made_report import result

Record = Callable[[str, Any], None]
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def shown(folder: Path) -> None:
    """What can be read can be shown."""
    page.render(read_runs([folder]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, with an evaluation and an autoencoder."""
    import torch

    folder = tmp_path_factory.mktemp("runs") / "run"
    made = result()
    made.findings.sae = SparseAutoencoder(torch.ones(8, 4), torch.ones(4), torch.ones(4, 8), torch.ones(8))
    made.save(folder, top=2)
    evaluation = {
        "circuit": {"method": "paper", "n_heads_in_circuit": 2},
        "truth": {"name": "causal", "n_heads_in_circuit": 2, "head_effects": [0.5, -1.0, 0.0, 2.0]},
        "curve": {"sizes": [1, 2], "faithfulness": [0.5, 1.0], "completeness": [0.5, 0.0]}
        | {f"random_{what}": [0.1, 0.2] for what in ("mean", "low", "high")},
        "areas": {"cpr": 0.5, "cmd": 0.1},
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    shown(folder)
    return folder


def damaged_folders(whole: Path, name: str, place: Path, n: int) -> Iterator[tuple[Path, str]]:
    """Yield copies of a folder in which one file is damaged."""
    content = (whole / name).read_bytes()
    texts = variants(json.loads(content), n, seed=1) if name.endswith(".json") else flipped_or_cut(content, n, seed=1)
    for number, text in enumerate(texts):
        folder = place / f"{whole.name}-{number}"
        shutil.copytree(whole, folder)
        (folder / name).write_bytes(text)
        yield folder, f"{name} {text[:100]!r}"
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "name", ["result.json", "circuit.json", "prompts.json", "evaluation.json", "scores.safetensors"]
)
def test_damaged_runs(run: Path, tmp_path: Path, name: str, record_attacks: Record, n_attacks: int) -> None:
    found = [
        (misbehaves(shown, folder, folder.name), what)
        for folder, what in damaged_folders(run, name, tmp_path, n_attacks)
    ]
    record_attacks("damaged run folder", found)


@SLOW
@given(st.sampled_from(["result.json", "circuit.json", "prompts.json", "evaluation.json"]), st.data())
def test_any_json_in_a_run(run: Path, tmp_path: Path, name: str, data: Any) -> None:
    document = json.loads((run / name).read_text())
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(sorted(document)), inner),
        max_leaves=12,
    )
    key = data.draw(st.sampled_from(sorted(document)))
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).write_text(json.dumps(document | {key: data.draw(values)}))
    assert misbehaves(shown, tmp_path / "run", "run") is None


def test_files_of_two_runs_in_one_folder(run: Path, tmp_path: Path, record_attacks: Record) -> None:
    """Every mixture of the files of two runs is refused, or is one of the two."""
    other = tmp_path / "other"
    made = result()
    scores = made.findings.head_scores[::-1].copy()
    renamed = replace(made.pairs, task="another")
    replace(made, method="paper-scaled", pairs=renamed, findings=replace(made.findings, head_scores=scores)).save(other)
    names = ["result.json", "circuit.json", "prompts.json", "scores.safetensors", "evaluation.json"]
    found = []
    for number, choice in enumerate(product((run, other), repeat=len(names))):
        folder = tmp_path / f"mixed-{number}"
        folder.mkdir()
        for name, source in zip(names, choice, strict=True):
            if (source / name).exists():
                shutil.copy(source / name, folder)
        taken = set(choice) if (folder / "evaluation.json").exists() else set(choice[:-1])
        try:
            shown(folder)
            wrong = "taken for one run" if len(taken) > 1 else None
        except HeadcodesError as error:
            wrong = None if len(taken) > 1 and folder.name in str(error) else f"refused: {error}"
        found.append((wrong, [path.name for path in choice]))
    record_attacks("files of two runs in one folder", found)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_damaged_autoencoders(run: Path, tmp_path: Path, name: str, record_attacks: Record, n_attacks: int) -> None:
    found = [
        (misbehaves(SparseAutoencoder.load, folder, folder.name), what)
        for folder, what in damaged_folders(run / "sae", name, tmp_path, n_attacks)
    ]
    record_attacks("damaged autoencoder", found)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=9) | st.sampled_from(["", "\0", "failed", "x" * 5000, "../../x"])
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -1, 10**9, 2**62])
OF_TYPE: dict[pa.DataType, Any] = {
    pa.string(): TEXTS,
    pa.int64(): NUMBERS,
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
    pa.list_(pa.int64()): st.lists(NUMBERS | st.none(), max_size=6),
    pa.list_(pa.float64()): st.lists(st.floats() | st.none(), max_size=6),
    pa.map_(pa.string(), pa.float64()): st.lists(st.tuples(TEXTS, st.floats()), max_size=3),
    pa.map_(pa.string(), pa.string()): st.lists(st.tuples(TEXTS, TEXTS), max_size=3),
}


def write_cell(store: Path, row: dict[str, Any], schema: pa.Schema = SCHEMA) -> Path:
    """Write a row as anybody could: by Parquet alone."""
    (store / "cells").mkdir(parents=True, exist_ok=True)
    (store / "arrays").mkdir(exist_ok=True)
    path = store / "cells" / f"{ROW['identity']}.parquet"
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in schema.names}], schema=schema), path)
    return path


@settings(SLOW, max_examples=100)
@given(st.data())
def test_any_row_of_a_store(tmp_path: Path, data: Any) -> None:
    names = data.draw(st.lists(st.sampled_from(SCHEMA.names[1:]), min_size=1, max_size=3, unique=True))
    changes = {name: data.draw(st.none() | OF_TYPE[SCHEMA.field(name).type]) for name in names}
    write_cell(tmp_path / "store", ROW | changes)
    assert misbehaves(shown, tmp_path / "store", "") is None, changes


def test_damaged_cells(tmp_path: Path, record_attacks: Record, n_attacks: int) -> None:
    found = []
    path = write_cell(tmp_path / "store", ROW)
    for content in flipped_or_cut(path.read_bytes(), n_attacks, seed=0):
        path.write_bytes(content)
        found.append((misbehaves(shown, tmp_path / "store", ""), f"{content[:20]!r} of {len(content)}"))
    kinds = (pa.string(), pa.int64(), pa.float64(), pa.list_(pa.string()), pa.struct([("a", pa.int64())]))
    for field, kind in product(SCHEMA, kinds):
        if kind != field.type:
            schema = SCHEMA.set(SCHEMA.get_field_index(field.name), pa.field(field.name, kind))
            write_cell(tmp_path / "store", {**ROW, field.name: None}, schema)
            found.append((misbehaves(shown, tmp_path / "store", ""), f"{field.name} as {kind}"))
    for row in ({"n_layers": 10**9}, {"n_layers": 10**9, "head_scores": None}, {"n_heads": -1, "head_scores": []}):
        write_cell(tmp_path / "store", ROW | row)
        found.append((misbehaves(shown, tmp_path / "store", ROW["identity"]), row))
    write_cell(tmp_path / "store", ROW).write_bytes(b"")
    (tmp_path / "store" / "cells" / f"{ROW['identity']}.parquet").unlink()
    os.mkfifo(tmp_path / "store" / "cells" / f"{ROW['identity']}.parquet")
    found.append((misbehaves(shown, tmp_path / "store", ""), "a pipe as a cell"))
    record_attacks("damaged cells of a store", found)


@pytest.mark.parametrize("kind", ["tensors", "note"])
def test_flipped_bits_of_the_cache(tmp_path: Path, kind: str, record_attacks: Record, n_attacks: int) -> None:
    import torch

    path = tmp_path / "file"
    parts, about = {"z": torch.arange(12.0).view(3, 4), "n": torch.tensor([1, 2])}, {"model": "m", "n": 3}
    if kind == "tensors":
        keep_tensors(path, parts, about)
    else:
        keep_note(path, about)
    found = []
    for content in flipped_or_cut(path.read_bytes(), 4 * n_attacks, seed=0):
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if kind == "note":
                    wrong = None if kept_note(path) in (None, about) else "believed"
                else:
                    read = kept_tensors(path)
                    same = read is None or (
                        read[1] == about and all(torch.equal(read[0][k], v) for k, v in parts.items())
                    )
                    wrong = None if same else "believed"
        except BaseException as error:
            wrong = repr(error)
        found.append((wrong, content[:50]))
    record_attacks("flipped bits of the cache", found)


def test_places_that_are_not_to_be_replaced(tmp_path: Path, record_attacks: Record) -> None:
    """Devices, pipes, folders, links in a circle; folders with anything that is not ours; inputs."""
    device(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine.txt")
    before = {path: os.lstat(path).st_mode for path in tmp_path.iterdir()}

    def file(path: Path) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("ours")

    def folder(path: Path) -> None:
        with run_folder(path) as fresh:
            (fresh / "result.json").write_text("ours")

    found = []
    files = [str(tmp_path / name) for name in ("device", "pipe", "circle", "folder")]
    folders = [str(tmp_path / name) for name in ("device", "pipe", "circle", "mine.txt", "link")]
    attempts = [(file, name, Path(name).name, "a file at") for name in files]
    attempts += [(folder, name, Path(os.path.realpath(name)).name, "a run at") for name in folders]
    for write, name, named, what in attempts:
        refused = misbehaves(write, Path(name), named)
        try:
            write(Path(name))
            refused = "written"
        except HeadcodesError:
            pass
        found.append((refused, f"{what} {name}"))
    for name in ("notes.txt", "result.json", "prompts.json", "attention.safetensors", ".hidden", "sae"):
        place = tmp_path / f"mine-{name}"
        place.mkdir()
        (place / name).write_text("mine")
        refused = misbehaves(folder, place, place.name)
        found.append((refused if (place / name).read_text() == "mine" else "overwritten", f"a run over {name}"))
    after = {path: os.lstat(path).st_mode for path in before}
    found.append((None if after == before else "replaced", "kinds of files afterwards"))
    record_attacks("places that are not to be written", found)
