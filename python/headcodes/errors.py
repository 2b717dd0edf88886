"""The one exception and the one warning of headcodes."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

_MAX_PART = 600
# What pydantic says in the words of Python, in those of files.
_OF_FILES = {"missing": "be there", "model_type": "be an object", "dict_type": "be an object"}
_OF_FILES |= {"list_type": "be a list", "tuple_type": "be a list"}


def _short(text: str) -> str:
    return text if len(text) <= _MAX_PART else f"{text[: _MAX_PART // 2]} ... {text[-_MAX_PART // 2 :]}"


class HeadcodesError(ValueError):
    """Something a caller gave cannot be used.

    The message always says three things: what must hold, what was got, and how to mend it. The command line prints it
    without a traceback and leaves with status 2.
    """

    def __init__(self, must: str, got: str, mend: str) -> None:
        # What was got may be of any size, and so may names in what must hold; a message is one line that is read.
        must, got = _short(must), _short(got)
        self.must = must
        self.got = got = " ".join(got.split()) if "\n" in got else got
        self.mend = mend
        super().__init__(f"{must}; got {got}. {mend}")

    def __reduce__(self) -> tuple[type[HeadcodesError], tuple[str, str, str]]:
        # Exceptions cross process borders in scans; the default would call __init__ with the one message.
        return type(self), (self.must, self.got, self.mend)


def missing_package(package: str, purpose: str, requirement: str | None = None) -> HeadcodesError:
    """Return the error for an optional package that is not installed: what it is for, and what pip installs it by."""
    return HeadcodesError(
        f"the package {package} must be installed for {purpose}",
        "an installation without it",
        f"pip install {requirement or package}",
    )


def unlike_schema(fault: Mapping[str, Any], of: str, mend: str) -> HeadcodesError:
    """Return the error for data from elsewhere that do not follow their schema.

    Args:
        fault: what pydantic found: a row of ``ValidationError.errors()``.
        of: what holds the data: "a circuit file".
        mend: how to mend it.
    """
    place = ".".join(map(str, fault["loc"]))
    said = re.sub(r"^(\w+ should|Value error,) | after validation.*", "", fault["msg"], flags=re.DOTALL)
    try:
        got = "nothing" if fault["type"] == "missing" else reprlib.repr(fault["input"])
    except ValueError:  # a number of too many digits to be shown
        got = f"a {type(fault['input']).__name__}"
    must = f"'{place}' of {of}" if place else of
    return HeadcodesError(f"{must} must {_OF_FILES.get(fault['type'], said)}", got, mend)


class HeadcodesWarning(UserWarning):
    """A result that stands, with something about it that a reader must know."""
