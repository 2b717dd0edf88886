"""The example notebook runs from top to bottom, and what it shows is what was committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[3] / "docs" / "notebooks" / "first-circuit.ipynb"


def shown(cell: Any) -> list[tuple[str, list[str]]]:
    """Kinds of a cell's outputs; warnings of the machine at hand do not count."""
    return [
        (output["output_type"], sorted(output.get("data", {})))
        for output in cell.get("outputs", [])
        if output.get("name") != "stderr"
    ]


def test_notebook_runs_and_shows_what_was_committed() -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (pip install nbclient ipykernel)")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (pip install nbclient ipykernel)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (pip install nbclient ipykernel)")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    committed = nbformat.read(NOTEBOOK, as_version=4)
    again = nbformat.from_dict(committed)
    for cell in again.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(again, timeout=300, kernel_name="python3").execute()
    assert [shown(cell) for cell in again.cells] == [shown(cell) for cell in committed.cells]
    text = "".join(str(cell.get("outputs")) for cell in again.cells)
    assert "2 runs in one file, below 6 MB" in text
