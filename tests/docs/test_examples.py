"""What the README shows runs, on the model it names."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import headcodes

ROOT = Path(__file__).parents[2]


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.real
def test_the_library_example_of_the_readme(
    smollm2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example = next(block for block in python_blocks(ROOT / "README.md") if "load_model" in block)
    assert "n=250" in example
    names: dict[str, Any] = {}
    exec(example.replace("n=250", "n=12"), names)  # fewer prompts, else as printed
    assert names["result"].circuit().nodes[0] in capsys.readouterr().out
    assert (tmp_path / "out" / "page.html").exists()


def test_every_environment_variable_is_documented() -> None:
    documented = (ROOT / "docs" / "env.md").read_text(encoding="utf-8")
    for path in [*(ROOT / "python").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for name in re.findall(r"HEADCODES_[A-Z_]+", path.read_text(encoding="utf-8")):
            assert f"`{name}`" in documented, (name, path)


def test_links_between_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), (path.name, target)


def test_the_reference_holds_whatever_the_package_exports() -> None:
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: (\S+)$", reference, flags=re.MULTILINE)
    for name, module in headcodes._EXPORTS.items():
        assert f"headcodes.{module}.{name}" in shown
    for module in headcodes._MODULES.values():
        assert any(path.startswith(f"headcodes.{module}") for path in shown), module
    for path in shown:
        assert pkgutil.resolve_name(path) is not None
