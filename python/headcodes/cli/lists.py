"""`headcodes models`, `tasks` and `methods`: what there is to choose from."""

from __future__ import annotations


def models() -> None:
    """List the models with short names, and which of them lie on this machine; other hub names work too."""
    from headcodes.models.sources import known_models

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
