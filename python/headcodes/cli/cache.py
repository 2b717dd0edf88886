"""`headcodes cache`: what is kept between runs."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Literal

import typer


def cache(
    action: Annotated[Literal["ls", "clear"], typer.Argument(help="ls lists what is kept; clear removes it.")],
) -> None:
    """List or clear the activations and causal truths kept for second runs."""
    from headcodes.activations import cache as activation_cache

    if action == "clear":
        print(f"headcodes: freed {activation_cache.clear() / 1e6:.1f} MB", file=sys.stderr)
        return
    for entry in activation_cache.ls():
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_s))
        print(f"{used}  {entry.n_bytes / 1e6:8.1f} MB  {entry.n_pairs:>5} pairs  {entry.model}  {entry.task}")
