"""What asks the web for the documents' addresses, and what puts badges on notebooks."""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def tool(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def web() -> Iterator[str]:
    """A server that has /here, refuses programs at /guarded, takes no HEAD at /post, and lacks everything else."""

    class Server(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            answers = {"/here": 200, "/guarded": 403, "/post": 405 if self.command == "HEAD" else 200}
            self.send_response(answers.get(self.path, 404))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 - the standard library's names

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_every_address_is_asked_once_and_what_is_gone_is_named(
    web: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs" / "notebooks").mkdir(parents=True)
    (tmp_path / "README.md").write_text(f"[a]({web}/here#part) <{web}/guarded>, {web}/post.", encoding="utf-8")
    links = tool("links")
    assert links.main(tmp_path) == 0
    (tmp_path / "docs" / "notebooks" / "n.ipynb").write_text(json.dumps([f"see {web}/gone\n"]), encoding="utf-8")
    (tmp_path / "docs" / "d.md").write_text(f"`{web}/gone`", encoding="utf-8")
    assert links.main(tmp_path) == 1
    said = capsys.readouterr().out
    assert f"404  {web}/gone  (d.md, n.ipynb)" in said
    assert "4 addresses, 1 of them gone" in said


def test_without_a_connection_nothing_is_called_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("http://127.0.0.1:9/x", encoding="utf-8")
    assert tool("links").main(tmp_path) == 3
    assert "nothing was checked" in capsys.readouterr().out


def test_badges_are_put_once_and_their_address_can_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    badges = tool("badges")
    for path in (DOCS / "notebooks").glob("*.ipynb"):
        shutil.copy(path, tmp_path)
    before = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*.ipynb")}
    assert set(before) >= {"first-circuit.ipynb", "own-task.ipynb", "many-models.ipynb", "compare-checkpoints.ipynb"}
    monkeypatch.setattr(badges, "NOTEBOOKS", tmp_path)
    for repo in ("someone/old", "someone/headcodes", "someone/headcodes"):
        assert badges.main(repo) == 0
    for name, notebook in before.items():
        after = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        text = "".join(after["cells"][0]["source"])
        assert text.count("colab-badge") == 1
        assert f"github/someone/headcodes/blob/main/docs/notebooks/{name})" in text
        assert text.split("\n")[0] == "".join(notebook["cells"][0]["source"]).split("\n")[0]
        assert after["cells"][1:] == notebook["cells"][1:]
    assert badges.main("https://somewhere") == 2
    assert "owner/name" in capsys.readouterr().err
