"""HTML that needs no network: escaping, embedding, hashes."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.report import figures

if TYPE_CHECKING:
    from jinja2 import Environment


def embed(value: Any) -> str:
    """Return JSON that can stand inside a script element: no ``<``, ``>``, ``&`` or line separator is left in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_array)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return encodable(text)


def encodable(text: str) -> str:
    """Write lone surrogates, which UTF-8 cannot hold, as backslash escapes: in JSON they then mean the same."""
    return text.encode("utf-8", "backslashreplace").decode()


def _array(value: Any) -> Any:
    """Encode an array the way plotly.js reads it: little-endian bytes in base64."""
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"no JSON for {type(value).__name__}")
    kind = f"{value.dtype.kind}{value.dtype.itemsize}"
    little = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"dtype": kind, "bdata": data, "shape": ", ".join(map(str, value.shape))}


@cache
def environment() -> Environment:
    """Return jinja with autoescape, which refuses undefined names."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("headcodes.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = figures.number
    return environment


@cache
def plotly_script() -> str:
    """Return plotly.js as a script element may hold it."""
    from plotly.offline import get_plotlyjs

    return _script(get_plotlyjs())


@cache
def asset(name: str) -> str:
    """Return a file of ``assets/`` as a script or style element may hold it."""
    return _script(files("headcodes.report").joinpath("assets", name).read_text(encoding="utf-8"))


def _script(text: str) -> str:
    # An HTML parser turns CR into LF before the hash is taken, and ends a script at the first "</script".
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def csp_hash(script: str) -> str:
    """Return the hash by which a content security policy allows a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
