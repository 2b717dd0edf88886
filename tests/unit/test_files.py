"""Files: what is read is bounded, what is written is whole and goes where a file belongs."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from headcodes.errors import HeadcodesError
from headcodes.files import atomic_write, cache_dir, check_writable, read_json, read_text, reading
from hostile_files import device


def write(path: Path, text: str = "new") -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def read(path: Path) -> Any:
    return read_json(path, "the file", "Mend it.")


def test_a_link_stays_a_link_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link, dangling = tmp_path / "there" / "file", tmp_path / "link", tmp_path / "dangling"
    target.write_text("old")
    link.symlink_to(target)
    dangling.symlink_to("there/not-yet")
    write(link)
    write(dangling)
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert target.read_text() == (tmp_path / "there" / "not-yet").read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dangling", "file", "link", "not-yet", "there"]


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    folder, pipe, link, circle = (tmp_path / name for name in ("folder", "pipe", "link", "circle"))
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(folder)
    circle.symlink_to(circle)
    for place in (folder, pipe, link, circle, device(tmp_path)):
        with pytest.raises(HeadcodesError, match=str(place)):
            write(place)
        with pytest.raises(HeadcodesError):
            check_writable(place)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert not (tmp_path / "device").is_file()
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "device", "folder", "link", "pipe"]


def test_what_cannot_be_written_is_found_before_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadcodesError, match="Not a directory"):
        check_writable(tmp_path / "file" / "below")
    check_writable(tmp_path / "new" / "below" / "file")
    assert not (tmp_path / "new").exists()
    if Path("/proc").is_dir():
        with pytest.raises(HeadcodesError, match="must be writable; got /proc"):
            check_writable("/proc/new/file")

    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write anywhere
    with pytest.raises(HeadcodesError, match="Permission denied"):
        check_writable(tmp_path / "new" / "file")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[" * 65 + "]" * 65,
        '{"a":' * 30_000 + "1" + "}" * 30_000,
        "1" * 5000,
        "-" + "9" * 20,
        '"\\ud800"',
        '{"\\uDFFF": 1}',
        '"\ud800"',
    ],
)
def test_json_beyond_its_limits_is_one_message_with_the_name_of_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(HeadcodesError, match=r"mine\.json") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_json_within_its_limits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"deep": ' + "[" * 60 + "]" * 60 + ', "emoji": "\\ud83d\\ude00", "n": -9223372036854775808}')
    assert read(path)["emoji"] == "😀"


def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with pytest.raises(HeadcodesError, match=str(path)):
            read(path)
    (tmp_path / "large").write_bytes(b" " * 11)
    with pytest.raises(HeadcodesError, match="at most 10 bytes"):
        read_text(tmp_path / "large", "the file", "Mend it.", max_bytes=10)


def test_panics_of_rust_become_messages_and_interrupts_pass() -> None:
    class PanicException(BaseException):
        pass

    with pytest.raises(HeadcodesError, match=r"x\.json: boom"), reading("it must be whole", "x.json", "Mend it."):
        raise PanicException("boom\nnote: more")
    for passing in (KeyboardInterrupt(), MemoryError(), RuntimeError("CUDA out of memory")):
        with pytest.raises(type(passing)), reading("it must be whole", "x.json", "Mend it."):
            raise passing


def test_a_cache_in_the_home_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADCODES_CACHE", "~no-such-user-here/c")
    with pytest.raises(HeadcodesError, match="HEADCODES_CACHE"):
        cache_dir()
