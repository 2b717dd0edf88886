"""Circuits on the Hugging Face Hub: a small dataset repository each, sent only when asked for."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.files import reading, reason_of
from headcodes.report.folders import read_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from headcodes.report.records import RunRecord

_N_HEADS = 20


def push_folder(folder: Path | str, repo: str, *, token: str | None = None, private: bool = False) -> str:
    """Send a saved run to a dataset repository of the Hub, which is made where it does not exist.

    ``circuit.json``, ``result.json``, a card and, where matplotlib is installed, a picture of the circuit go in one
    commit: all of them or none, and a repository that was made for them is taken back where they do not arrive. The
    prompts, the page that shows them, and the autoencoder stay where they are.

    Args:
        folder: what ``Result.save`` or ``headcodes discover --out`` wrote.
        repo: owner and name, ``"me/ioi-gpt2"``.
        token: of the Hub; else the one of ``HF_TOKEN`` or ``hf auth login``.
        private: make a private repository, where it has to be made.

    Returns:
        The address of the repository.

    Raises:
        HeadcodesError: no saved run, a name or token that the Hub refuses, or no connection.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    record = read_folder(folder)
    files = {name: (folder / name).read_bytes() for name in ("circuit.json", "result.json")}
    picture = _picture(record)
    if picture is not None:
        files["circuit.png"] = picture
    files["README.md"] = card(record, repo, picture is not None).encode()
    with reading(
        "the Hub must take what is sent to it", repo, "Nothing was sent; check owner/name, HF_TOKEN and the connection."
    ):
        api = HfApi(token=token, library_name="headcodes")
        there = api.repo_exists(repo, repo_type="dataset")
        made = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        try:
            api.create_commit(
                repo,
                [CommitOperationAdd(name, content) for name, content in files.items()],
                commit_message="Circuit found by headcodes",
                repo_type="dataset",
            )
        except Exception as error:
            if not there:
                _take_back(api, repo, error)
            raise
    return str(made)


def _take_back(api: HfApi, repo: str, error: Exception) -> None:
    """Delete the repository that was just made, and is empty.

    Raises:
        HeadcodesError: it cannot be deleted either.
    """
    try:
        api.delete_repo(repo, repo_type="dataset", missing_ok=True)
    except Exception as second:
        got = f"{repo}: {reason_of(error)}; and the empty repository could not be deleted: {reason_of(second)}"
        raise HeadcodesError("the Hub must take what is sent to it", got, f"Delete datasets/{repo} by hand.") from error


def card(record: RunRecord, repo: str, picture: bool) -> str:
    """Return the repository's card: what was run, the strongest heads, and how to read the circuit."""
    document, circuit = record.document, record.circuit
    asked = {
        "model": document["model"],
        "task": document["task"],
        "method": document["method"],
        "level": document["level"],
        "prompt pairs": document["n_prompts"],
        "seeds": document.get("seeds", [document["seed"]]),
        "versions": ", ".join(f"{name} {version}" for name, version in document["versions"].items()),
    }
    heads = [name for name in circuit.nodes if name in circuit.node_scores][:_N_HEADS]
    lines = [
        "---",
        # Quoted: names are the user's.
        f"tags: [headcodes, circuit, {json.dumps(str(document['method']))}]",
        "pretty_name: " + json.dumps("Circuit of {model} on {task}".format_map(asked)),
        "---",
        "",
        f"# Attention heads of {_cell(document['model'])} behind {_cell(document['task'])}",
        "",
        *(["![the circuit](circuit.png)", ""] if picture else []),
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in asked.items()),
        "",
        "| head | score |",
        "|---|---|",
        *(f"| {name} | {circuit.node_scores[name]:.4g} |" for name in heads),
        "",
        "```python",
        "from headcodes import Circuit",
        "",
        f"circuit = Circuit.from_hub({json.dumps(repo)})",
        "```",
        "",
        "`circuit.json` holds every score; `result.json` what was asked for and every number of the run.",
        "",
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())


def _picture(record: RunRecord) -> bytes | None:
    from headcodes.report.plots import plot_circuit

    try:
        figure = plot_circuit(record, backend="matplotlib")
    except HeadcodesError as error:
        warnings.warn(f"the card has no picture: {error}", HeadcodesWarning, stacklevel=3)
        return None
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150, bbox_inches="tight")
    return drawn.getvalue()
