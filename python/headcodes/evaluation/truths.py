"""Published ground truths: which heads, in which roles, joined how, by whose account.

Accounts of one behaviour differ, so each has a name and stays as it was published; none is ever mended in
place. The causal truth of any model and task is computed instead: ``headcodes.interventions.patch.causal_truth``.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from headcodes.circuit.circuit import Circuit
from headcodes.errors import HeadcodesError
from headcodes.graph import GroundTruth, Head, Pair, head_name


def _heads(text: str) -> tuple[Head, ...]:
    """Read "9.9 10.0" as ((9, 9), (10, 0))."""
    return tuple((int(layer), int(head)) for layer, head in (word.split(".") for word in text.split()))


def _all_pairs(sources: Iterable[Head], destinations: Iterable[Head]) -> tuple[Pair, ...]:
    return tuple(product(sources, destinations))


GPT2 = "openai-community/gpt2"
ATTN_ONLY_4L = "NeelNanda/Attn_Only_4L512W_C4_Code"

_WANG = (
    "Wang, Variengien, Conmy, Shlegeris, Steinhardt 2022, Interpretability in the Wild: a Circuit for "
    "Indirect Object Identification in GPT-2 small, arXiv 2211.00593"
)
_CONMY = (
    "Conmy, Mavor-Parker, Lynch, Heimersheim, Garriga-Alonso 2023, Towards Automated Circuit Discovery for "
    "Mechanistic Interpretability, arXiv 2304.14997"
)
_HANNA = (
    "Hanna, Liu, Variengien 2023, How does GPT-2 compute greater-than?: Interpreting mathematical abilities "
    "in a pre-trained language model, arXiv 2305.00586"
)
_HEIMERSHEIM = (
    "Heimersheim, Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only transformer, Alignment Forum"
)
_ONEILL = (
    "O'Neill, Bui 2024, Sparse Autoencoders Enable Scalable and Reliable Circuit Identification in "
    "Language Models, arXiv 2405.12522"
)


def _ioi(name: str, source: str, backup: str, note: str) -> GroundTruth:
    roles = {
        "name mover": _heads("9.9 10.0 9.6"),
        "backup name mover": _heads(backup),
        "negative name mover": _heads("10.7 11.10"),
        "S-inhibition": _heads("7.3 7.9 8.6 8.10"),
        "induction": _heads("5.5 5.8 5.9 6.9"),
        "duplicate token": _heads("0.1 0.10 3.0"),
        "previous token": _heads("2.2 4.11"),
    }
    movers = roles["name mover"] + roles["backup name mover"] + roles["negative name mover"]
    pairs = (
        _all_pairs(roles["previous token"], roles["induction"])
        + _all_pairs(roles["duplicate token"] + roles["induction"], roles["S-inhibition"])
        + _all_pairs(roles["S-inhibition"], movers)
    )
    return GroundTruth(name, "ioi", GPT2, 12, 12, roles, source, pairs=pairs, note=note)


def _greater_than(name: str, source: str, note: str) -> GroundTruth:
    early, late = _heads("0.1 0.3 0.5"), _heads("5.5 6.1 6.9 7.10 8.11 9.1")
    pairs = _all_pairs(early, late)
    mlps = (0, 1, 2, 3, 8, 9, 10, 11)
    roles = {"circuit": early + late}
    return GroundTruth(name, "greater-than", GPT2, 12, 12, roles, source, pairs=pairs, mlps=mlps, note=note)


def _docstring(name: str, source: str, second: str, note: str) -> GroundTruth:
    late = _heads("3.0 3.6")
    extra = _heads(second)
    pairs = (
        _all_pairs(_heads("0.5"), (*extra, *_heads("1.4 2.0"), *late))
        + _all_pairs(_heads("1.4"), (*_heads("2.0"), *late))
        + _all_pairs((*_heads("2.0"), *extra), late)
    )
    roles = {"circuit": tuple(sorted((*_heads("0.5 1.4 2.0"), *extra, *late)))}
    return GroundTruth(name, "docstring", ATTN_ONLY_4L, 4, 8, roles, source, pairs=pairs, note=note)


_TRUTHS = (
    _ioi("wang2022", _WANG, "10.10 10.6 10.2 10.1 11.2 9.7 9.0 11.9", "26 heads in seven roles."),
    _ioi(
        "oneill2024",
        _ONEILL,
        "10.10 10.6 10.2 10.1 11.2 9.7 11.3 11.9",
        "As wang2022, with 11.3 in place of 9.0: what the authors of the codes method scored against.",
    ),
    _greater_than("conmy2023", _CONMY, "MLPs 0-3 and 8-11 belong to it too."),
    _greater_than("oneill2024", _ONEILL, "The heads and pairs of conmy2023."),
    GroundTruth(
        "hanna2023",
        "greater-than",
        GPT2,
        12,
        12,
        {"circuit": _heads("5.1 5.5 6.9 7.10 8.8 8.11 9.1")},
        _HANNA,
        mlps=(8, 9, 10, 11),
        note="No pairs: the account has heads feed the MLPs.",
    ),
    _docstring("conmy2023", _CONMY, "1.2", "Six heads of an attention-only model."),
    _docstring("oneill2024", _ONEILL, "1.0", "As conmy2023, with 1.0 in place of 1.2."),
    GroundTruth(
        "heimersheim2023",
        "docstring",
        ATTN_ONLY_4L,
        4,
        8,
        {"circuit": _heads("0.5 1.4 2.0 3.0 3.6"), "supporting": _heads("0.2 0.4 1.2")},
        _HEIMERSHEIM,
        note="Five heads, and three further ones that the account adds. No pairs.",
    ),
)


def names(task: str | None = None) -> list[tuple[str, str]]:
    """Return (task, name) of every published truth, of one task where ``task`` is given."""
    return [(truth.task, truth.name) for truth in _TRUTHS if task in (None, truth.task)]


def get(task: str, name: str) -> GroundTruth:
    """Return a published ground truth.

    Raises:
        HeadcodesError: there is none of this name for this task.
    """
    for truth in _TRUTHS:
        if (truth.task, truth.name) == (task, name):
            return truth
    known = ", ".join(known for _, known in names(task)) or "none"
    raise HeadcodesError(
        f"a published truth of task {task!r} must be one of: {known}",
        repr(name),
        "Name one of these, or ask for the causal truth of your own model with 'causal'.",
    )


def circuit_of(truth: GroundTruth) -> Circuit:
    """Return an account as a circuit without scores; the roles are in its ``meta``."""
    return Circuit(
        n_layers=truth.n_layers,
        n_heads=truth.n_heads,
        nodes=tuple(head_name(*head) for head in truth.heads) + tuple(f"m{layer}" for layer in truth.mlps),
        edges=tuple((head_name(*source), head_name(*destination)) for source, destination in truth.pairs),
        model=truth.model,
        task=truth.task,
        method=truth.name,
        meta={
            "source": truth.source,
            "note": truth.note,
            "roles": {role: [head_name(*head) for head in heads] for role, heads in truth.roles.items()},
        },
    )
