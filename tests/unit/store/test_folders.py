"""Folders of runs: whole, replaced in one step, and never at the cost of a file that is not ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headcodes.errors import HeadcodesError
from headcodes.files import atomic_write, sweep
from headcodes.store import folders
from headcodes.store.folders import check_run_folder, run_folder
from hostile_files import device

RESULT = '{"schema": 1, "method": "paper", "head_scores": [], "circuit": {}}'


def save(place: Path, *names: str) -> None:
    with run_folder(place) as fresh:
        assert list(fresh.iterdir()) == []
        (fresh / "sae").mkdir()
        for name in ("result.json", *names):
            (fresh / name).write_text(RESULT)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_exchanged", lambda *_: False)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_run_replaces_every_file_of_an_earlier_one(
    tmp_path: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        no_exchange(monkeypatch)
    place = tmp_path / "new" / "run"
    save(place, "evaluation.json", "attention.safetensors")
    save(place, "page.html")
    assert names(place) == ["page.html", "result.json", "sae"]
    assert names(place.parent) == ["run"]
    assert place.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_link_to_a_folder_stays_and_the_working_folder_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    monkeypatch.chdir(tmp_path / "there")
    before = Path.cwd().stat().st_ino
    save(Path(), "page.html")
    save(Path("."), "circuit.json")
    assert Path.cwd().stat().st_ino == before
    assert names(Path()) == ["circuit.json", "result.json", "sae"]
    assert names(tmp_path) == ["link", "there"]


def test_what_fails_while_writing_leaves_the_earlier_run_as_it_was(tmp_path: Path) -> None:
    save(tmp_path / "run", "evaluation.json")
    with pytest.raises(ZeroDivisionError), run_folder(tmp_path / "run") as fresh:
        (fresh / "result.json").write_text(f"half {1 // 0}")
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["evaluation.json", "result.json", "sae"]
    assert (tmp_path / "run" / "result.json").read_text() == RESULT


@pytest.mark.parametrize(
    "files",
    [
        {"mine.txt": "mine"},
        {"result.json": RESULT, "mine.txt": "mine"},
        {"result.json": '{"mine": true}'},
        {"result.json": "no json"},
        {"prompts.json": "mine"},
        {"attention.safetensors": "mine"},
        {".hidden": "mine"},
    ],
)
def test_a_folder_with_anything_not_ours_is_refused_and_left(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for verb in (check_run_folder, save):
        with pytest.raises(HeadcodesError, match=str(tmp_path)):
            verb(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_places_where_no_folder_can_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below", device(tmp_path)):
        with pytest.raises(HeadcodesError):
            check_run_folder(place)
    assert (tmp_path / "file").read_text() == "mine"


def test_inputs_are_not_written_over(tmp_path: Path) -> None:
    save(tmp_path / "run", "prompts.json")
    (tmp_path / "link").symlink_to(tmp_path / "run" / "prompts.json")
    for prompts in (tmp_path / "run" / "prompts.json", tmp_path / "link"):
        with pytest.raises(HeadcodesError, match=prompts.name):
            check_run_folder(tmp_path / "run", inputs=[prompts])
    check_run_folder(tmp_path / "run", inputs=[None, tmp_path / "other.json", Path("gpt2")])


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_stay(tmp_path: Path) -> None:
    code = f"""
import os
from headcodes.files import atomic_write
from headcodes.store.folders import run_folder
with run_folder({str(tmp_path / "run")!r}) as fresh, atomic_write({str(tmp_path / "file")!r}):
    (fresh / "result.json").write_text("half")
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(names(tmp_path)) == 2
    with atomic_write(tmp_path / "file") as living:
        assert len(sweep(tmp_path)) == 2
        assert names(tmp_path) == [living.name]
    elsewhere = tmp_path / ".file.another-machine~1.x.part"
    elsewhere.write_text("")
    assert sweep(tmp_path) == []
    os.utime(elsewhere, (0, 0))
    assert sweep(tmp_path) == [elsewhere]
