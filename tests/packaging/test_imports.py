"""Who may import whom, and what an import may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "numpy", "triton", "transformers", "transformer_lens", "plotly", "sklearn"}


def imported_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import headcodes; dir(headcodes)",
        "import headcodes.cli",
        "import headcodes.methods; headcodes.methods.get('default')",
        "import headcodes.tasks; headcodes.tasks.ids()",
    ],
)
def test_light_imports_stay_light(code: str) -> None:
    assert not imported_by(code) & HEAVY


def test_main_path_never_imports_transformer_lens() -> None:
    stages = [
        "discovery",
        "models.load",
        "activations.capture",
        "codes.recipes",
        "overlap.counts",
        "circuit.formats",
        "result",
    ]
    code = "\n".join(f"import headcodes.{module}" for module in [*stages, "methods.code_sets"])
    assert "transformer_lens" not in imported_by(code)


def test_every_public_name_is_there() -> None:
    code = (
        "import headcodes\nfor name in headcodes.__all__: getattr(headcodes, name)\nassert callable(headcodes.discover)"
    )
    imported_by(code)


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


def test_kernels_never_import_headcodes() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        assert "headcodes" not in imports_of(path), path


def test_core_includes_only_std_and_itself() -> None:
    for path in [*(ROOT / "csrc/src").rglob("*.cpp"), *(ROOT / "csrc/include").rglob("*.hpp")]:
        text = path.read_text(encoding="utf-8")
        assert "Python.h" not in text, path
        assert "pybind11" not in text, path


def test_no_pickle_and_no_remote_code() -> None:
    for path in [*(ROOT / "python").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        assert "pickle" not in imports_of(path), path
        assert "trust_remote_code=True" not in path.read_text(encoding="utf-8"), path
