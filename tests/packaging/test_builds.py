"""Wheel, sdist and editable install: each is built and used in an environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from headcodes import __version__, planted
from headcodes.graph import head_name

ROOT = Path(__file__).parents[2]
USE = (
    "import headcodes, headcodes_kernels, numpy as np\n"
    "a = np.array([[1, 4], [3, 5]], dtype=np.int32); b = np.array([[1, 4]], dtype=np.int32)\n"
    "print(headcodes.unique_counts(a, b).tolist(), headcodes.__file__)"
)
SOURCES = ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", "csrc", "python", "kernels")


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the sources, so that building leaves no trace in the checkout."""
    folder = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(tree: Path) -> Path:
    out = tree / "dist"
    code = f"import scikit_build_core.build as b; print(b.build_sdist({str(out)!r}))"
    out.mkdir()
    return out / run(sys.executable, "-c", code, cwd=tree).split()[-1]


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel is built from the sdist, so it also shows that the sdist is whole."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--quiet")
    run(*pip, "--wheel-dir", folder, sdist, PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    (built,) = folder.glob("*.whl")
    return built


def demo_in(environment: Path) -> str:
    """The planted demo by the command that the environment's wheel brought, far from the checkout."""
    command = (environment / "bin" / "headcodes", "discover", "--model", "planted-ioi", "--n-prompts", "12", "--json")
    return run(*command, cwd=environment, HEADCODES_CACHE=str(environment / "cache"), OMP_NUM_THREADS="1")


def used_in_new_environment(folder: Path, *pip_arguments: str | Path) -> str:
    """Install into a bare virtual environment that borrows every other package from this one."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # Behind the environment's own packages, and without the .pth files there, one of which is our editable install.
    (site_packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet")
    run(*pip, *pip_arguments, PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    return run(python, "-c", USE, cwd=folder)


def test_wheel_works_and_holds_only_what_it_should(wheel: Path, tmp_path: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"headcodes", "headcodes_kernels"}
    assert {"headcodes/py.typed", "headcodes_kernels/py.typed", "headcodes/_core.pyi"} <= set(names)
    assert any(name.startswith("headcodes/_core") and name.endswith(".so") for name in names)
    out = used_in_new_environment(tmp_path / "env", wheel)
    assert out.startswith(f"[1, 1] {tmp_path}")
    # The first circuit, as the README has it, by the installed command.
    found = json.loads(demo_in(tmp_path / "env"))
    assert found["versions"]["headcodes"] == __version__
    truth = {head_name(*head) for heads in planted.load("planted-ioi").truth.roles.values() for head in heads}
    assert len(truth & set(found["circuit"]["nodes"])) > len(truth) / 2
    run(tmp_path / "env" / "bin" / "python", ROOT / "tests" / "packaging" / "core_alone.py", cwd=tmp_path)


def test_sdist_holds_the_sources(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md", "csrc/bindings/module.cpp"} <= names


def test_editable_install_uses_the_tree(tree: Path, tmp_path: Path) -> None:
    out = used_in_new_environment(tmp_path / "env", "--no-build-isolation", "--editable", tree)
    assert out.startswith(f"[1, 1] {tree}/python/headcodes")


def test_the_version_stands_in_one_place(wheel: Path) -> None:
    assert wheel.name.split("-")[1] == __version__
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
