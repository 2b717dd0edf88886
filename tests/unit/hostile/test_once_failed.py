"""What was once answered by a traceback, read for ever or believed, is answered by one line with the file's name.

The files lie in tests/data/once-failed: circuits, graphs, prompts and plans as they are; files that take the place of
one in the folder of a run; and what is changed in the row of a store's cell. The large ones are made here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headcodes.store.cells import SCHEMA
from hostile_files import ROW, nested
from made_report import result

Run = Callable[..., tuple[int, str, str]]
DATA = Path(__file__).parents[2] / "data" / "once-failed"
FILES = sorted(str(path.relative_to(DATA)) for path in DATA.rglob("*.*"))
COMMANDS: dict[str, Callable[[Path, Path], tuple[object, ...]]] = {
    "circuit": lambda file, out: ("export", file, out, "--format", "mib"),
    "graph": lambda file, out: ("export", file, out, "--format", "mib"),
    "prompts": lambda file, _out: ("discover", "--model", "planted-ioi", "--method", "act-norm", "--prompts", file),
    "plan": lambda file, _out: ("scan", file, "--dry-run"),
    "run": lambda folder, out: ("report", folder, "--out", out),
}
COMMANDS["cell"] = COMMANDS["run"]
LARGE = {
    "circuit/deep.json": nested(50_000),
    "circuit/deep-objects.json": '{"a":' * 50_000,
    "circuit/5000-digits.json": '{"schema": 1, "kind": "circuit", "n_layers": ' + "9" * 5000 + "}",
    "graph/deep.json": '{"cfg": ' + nested(50_000) + "}",
    "prompts/deep.json": nested(50_000),
    "prompts/deep.jsonl": nested(100_000),
    "prompts/5000-digits.json": '{"prompts": [{"clean": "a", "corrupt": "b", "answers": [' + "9" * 5000 + "]}]}",
    "plan/deep.yaml": "models: " + nested(3000),
    "plan/5000-digits.yaml": "models: [planted-ioi]\nn_prompts: " + "9" * 5000,
    "plan/large.yaml": " " * (1 << 20) + "models: [planted-ioi]",
    "run/result-deep.json": nested(50_000),
}

pytestmark = pytest.mark.usefixtures("own_cache")


def laid_out(kind: str, file: str, content: bytes, folder: Path) -> Path:
    """Return what a command is to be given: the file, or the folder of a run or store with it inside."""
    if kind == "run":
        result().save(folder / "run", top=2)
        (folder / "run" / f"{file.partition('-')[0]}.json").write_bytes(content)
        return folder / "run"
    if kind == "cell":
        (folder / "store" / "cells").mkdir(parents=True)
        row = {name: (ROW | json.loads(content)).get(name) for name in SCHEMA.names}
        pq.write_table(pa.Table.from_pylist([row], SCHEMA), folder / "store" / "cells" / f"{ROW['identity']}.parquet")
        return folder / "store"
    (folder / file).write_bytes(content)
    return folder / file


@pytest.mark.parametrize("name", [*FILES, *LARGE])
def test_what_once_failed_is_one_line(run: Run, tmp_path: Path, name: str, record_attacks: Any) -> None:
    kind, _, file = name.partition("/")
    content = LARGE[name].encode() if name in LARGE else (DATA / name).read_bytes()
    given = laid_out(kind, file, content, tmp_path)
    status, out, err = run(*COMMANDS[kind](given, tmp_path / "out"))
    clear = err.count("\n") == 1 and len(err) < 1100 and given.name in err and "; got " in err
    wrong = None if (status, out) == (2, "") and clear and not (tmp_path / "out").exists() else f"{status} {out} {err}"
    record_attacks("what once failed", [(wrong, name)])
