"""`headcodes export`, `headcodes diff` and `headcodes push`: circuits, other tools' files, and the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def export(
    circuit: Annotated[Path, typer.Argument(help="A circuit.json of ours, or a MIB graph.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    form: Annotated[str, typer.Option("--format", help="mib, auto-circuit, graphml or circuit (ours).")] = "mib",
) -> None:
    """Write a circuit in another tool's form."""
    from headcodes.circuit import formats as forms
    from headcodes.files import check_writable

    check_writable(out, circuit)
    forms.export(forms.load_circuit(circuit), form, out)


def diff(
    a: Annotated[Path, typer.Argument(help="A circuit.json of ours, or a MIB graph.")],
    b: Annotated[Path, typer.Argument(help="Another one, of a model of the same shape.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two circuits: what one has and the other has not, and how their scores rank."""
    from headcodes.circuit.formats import load_circuit
    from headcodes.evaluation.diff import diff as compare

    found = compare(load_circuit(a), load_circuit(b))
    print(json.dumps(found.as_dict()) if as_json else found.as_text())


def push(
    folder: Annotated[Path, typer.Argument(help="A saved run (discover --out).")],
    repo: Annotated[str, typer.Argument(help="Dataset repository of the Hugging Face Hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a private repository, where there is none.")] = False,
) -> None:
    """Send a run's circuit, result and a card to the Hub; prompts stay here. Token: HF_TOKEN, or hf auth login's."""
    from headcodes.report.hub import push_folder

    print(push_folder(folder, repo, private=private))
