"""`headcodes models`, `tasks` and `methods`: what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from headcodes.cli.options import Device, Dtype, Projection, Revision


def models(
    check: Annotated[
        str | None, typer.Option(metavar="NAME", help="Open this model and say what it is found to do.")
    ] = None,
    revision: Revision = None,
    projection: Projection = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """List the models with short names, and which of them lie on this machine; other hub names work too."""
    from headcodes.models.sources import known_models

    if check is not None:
        from headcodes.models.check import verdict
        from headcodes.models.load import load_model

        found = load_model(check, revision=revision, device=device, dtype=dtype, projection=projection)
        for name, line in verdict(found).items():
            print(f"{name:<18} {line}")
        return
    for row in known_models():
        shape = f"{row.n_layers} x {row.n_heads} heads"
        print(f"{row.name:<16} {'at hand' if row.at_hand else '':<8} {shape:<15} {row.source}  {row.note}".rstrip())


def tasks() -> None:
    """List the built-in tasks and their negatives."""
    from headcodes import tasks as registry

    for name in registry.ids():
        task = registry.get(name)
        print(f"{name:<18} {task.summary}  [negatives: {', '.join(task.negatives)}]")


def methods() -> None:
    """List the methods and where they were published."""
    from headcodes.methods import METHODS

    for method in METHODS.values():
        print(f"{method.id:<22} {method.summary}  [{'/'.join(method.levels)}; {method.cost}; {method.source}]")
