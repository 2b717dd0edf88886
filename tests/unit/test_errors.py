"""Every error says what must hold, what was got and how to mend it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import headcodes
from headcodes.errors import HeadcodesError, missing_package

ROOT = Path(headcodes.__file__).parent
TREES = {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
ALL = [(path, node) for path, tree in TREES.items() for node in ast.walk(tree)]


def named(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def errors() -> set[str]:
    """HeadcodesError, what is made from it, and ``files.reading``, which raises it."""
    names = {"HeadcodesError", "reading"}
    while True:
        more = {n.name for _, n in ALL if isinstance(n, ast.ClassDef) and names & {named(b) for b in n.bases}}
        if more <= names:
            return names
        names |= more


def requirements() -> Iterator[tuple[str, str]]:
    """Where an error is made, and the literal parts of what it says must hold; what is passed on has none."""
    names = errors()
    for path, node in ALL:
        if isinstance(node, ast.Call) and node.args and named(node.func) in names:
            texts = [
                n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            if texts:
                yield f"{path}:{node.lineno}", " ".join(texts)


def test_every_error_says_what_must_hold() -> None:
    found = dict(requirements())
    assert len(found) > 200
    assert {place: text for place, text in found.items() if "must " not in text} == {}


def test_every_error_has_its_three_parts() -> None:
    short = [
        f"{path}:{node.lineno}"
        for path, node in ALL
        if isinstance(node, ast.Call) and named(node.func) == "HeadcodesError" and len(node.args) != 3
    ]
    assert short == []


def test_the_message_is_one_line() -> None:
    error = missing_package("ray", "the engine 'ray'", '"headcodes[ray]"')
    assert str(error) == (
        "the package ray must be installed for the engine 'ray'; got an installation without it."
        ' pip install "headcodes[ray]"'
    )
    for long in (("x must hold", "a\nb " + "c" * 5000), ("x must be " + "d" * 5000, "b")):
        said = str(HeadcodesError(*long, "Mend it."))
        assert "\n" not in said
        assert len(said) < 1000
