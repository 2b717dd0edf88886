"""Circuits on the Hub, against a stand-in of its HTTP interface on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import headcodes
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.report.folders import read_folder


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as making a repository, committing small files and fetching one take."""

    repos: dict[str, dict[str, bytes]]
    requests: list[str]
    token = "right"
    drop_commits = drop_deletions = False
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *_: Any) -> None: ...

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append(self.path)
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            return self.answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            assert asked["type"] == "dataset"
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            new = repo not in self.repos
            self.repos.setdefault(repo, {})
            return self.answer(200 if new else 409, {"url": f"{self.base()}/datasets/{repo}"})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if self.path.endswith("/commit/main"):
            if self.drop_commits:
                return self.connection.close()
            repo = self.path.removeprefix("/api/datasets/").removesuffix("/commit/main")
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    self.repos[repo][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            return self.answer(
                200,
                {"success": True, "commitOid": self.commit, "commitUrl": f"{self.base()}/datasets/{repo}/commit/x"},
            )
        return self.answer(404, {"error": self.path})

    def do_GET(self) -> None:
        self.requests.append(self.path)
        _, kind, owner, name, _, _, *rest = [*self.path.split("/"), *[""] * 6]
        if self.path.startswith("/api/datasets/"):  # whether a repository is there
            owner, name = self.path.split("/")[3:5]
            found = f"{owner}/{name}" in self.repos
            return self.answer(200 if found else 404, {"id": f"{owner}/{name}"}, X_Error_Code="RepoNotFound")
        files = self.repos.get(f"{owner}/{name}") if kind == "datasets" else None
        path = "/".join(part for part in rest if part)
        if files is None:
            return self.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if path not in files:
            return self.answer(
                404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=self.commit
            )
        return self.answer(200, files[path], ETag=f'"{hash(files[path])}"', X_Repo_Commit=self.commit)

    do_HEAD = do_GET  # noqa: N815 - the standard library's names

    def do_DELETE(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self.requests.append(self.path)
        if self.drop_deletions:
            return self.connection.close()
        assert (self.path, asked["type"]) == ("/api/repos/delete", "dataset")
        del self.repos[f"{asked.get('organization') or 'me'}/{asked['name']}"]
        return self.answer(200)

    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    from huggingface_hub import constants

    served = type("Served", (Hub,), {"repos": {}, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), served)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", base)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", base + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "right")
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved run on a planted model."""
    model = headcodes.load_model("planted-ioi")
    pairs = headcodes.tasks.get("ioi").build(model.tokenizer, n=8, seed=0)
    out = tmp_path_factory.mktemp("run")
    headcodes.discover(model, pairs, method="act-norm").save(out)
    return out


def test_a_circuit_comes_back_as_it_was_sent(hub: type[Hub], folder: Path, run: Any) -> None:
    assert run("push", folder, "me/ioi")[::2] == (0, "")
    sent = hub.repos["me/ioi"]
    assert set(sent) == {"README.md", "circuit.json", "result.json", "circuit.png"}
    assert sent["circuit.json"] == (folder / "circuit.json").read_bytes()
    assert sent["circuit.png"].startswith(b"\x89PNG")
    card = sent["README.md"].decode()
    circuit = headcodes.Circuit.from_hub("me/ioi")
    assert circuit == headcodes.Circuit.from_json(folder / "circuit.json")
    assert f"| {circuit.nodes[0]} |" in card
    assert 'Circuit.from_hub("me/ioi")' in card
    # No prompt of the user leaves the machine.
    pairs = read_folder(folder).pairs
    assert pairs is not None
    assert not any(pair.clean.encode() in content for pair in pairs for content in sent.values())


def test_a_result_is_sent_without_being_saved_first(hub: type[Hub]) -> None:
    model = headcodes.load_model("planted-ioi")
    pairs = headcodes.tasks.get("ioi").build(model.tokenizer, n=4, seed=0)
    result = headcodes.discover(model, pairs, method="act-norm")
    assert result.push_to_hub("me/again", token="right").endswith("/datasets/me/again")
    assert headcodes.Circuit.from_hub("me/again").nodes == result.circuit().nodes


def test_a_refused_token_sends_nothing(hub: type[Hub], folder: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    status, _, err = run("push", folder, "me/ioi")
    assert (status, hub.repos) == (2, {})
    assert err.count("\n") == 1
    assert "HF_TOKEN" in err
    assert not any("commit" in path for path in hub.requests)


@pytest.mark.parametrize("before", [None, {"circuit.json": b"an older one"}])
def test_a_lost_connection_leaves_all_as_it_was(
    hub: type[Hub], folder: Path, run: Any, before: dict[str, bytes] | None
) -> None:
    hub.drop_commits = True
    if before is not None:
        hub.repos["me/ioi"] = dict(before)
    status, _, err = run("push", folder, "me/ioi")
    assert status == 2
    assert err.count("\n") == 1
    assert "Nothing was sent" in err
    assert hub.repos == ({} if before is None else {"me/ioi": before})


def test_an_empty_repository_that_cannot_be_taken_back_is_named(hub: type[Hub], folder: Path, run: Any) -> None:
    hub.drop_commits = hub.drop_deletions = True
    status, _, err = run("push", folder, "me/ioi")
    assert status == 2
    assert err.count("\n") == 1
    assert "Delete datasets/me/ioi by hand" in err
    assert hub.repos == {"me/ioi": {}}
    with pytest.raises(HeadcodesError, match="circuit"):
        headcodes.Circuit.from_hub("me/ioi")


def test_what_is_not_there_is_refused(hub: type[Hub], tmp_path: Path, run: Any) -> None:
    with pytest.raises(HeadcodesError, match="me/absent"):
        headcodes.Circuit.from_hub("me/absent")
    assert run("push", tmp_path, "me/ioi")[0] == 2
    assert hub.repos == {}


def test_a_card_without_matplotlib_says_so(hub: type[Hub], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from headcodes.report.hub import push_folder

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(HeadcodesWarning, match="no picture"):
        push_folder(folder, "me/ioi")
    assert "circuit.png" not in hub.repos["me/ioi"]
    assert b"circuit.png" not in hub.repos["me/ioi"]["README.md"]
