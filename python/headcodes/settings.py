"""What a run is asked for: its settings, each named, typed and bounded here alone, and lists of seeds."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Literal, get_args, get_type_hints

from headcodes.errors import HeadcodesError

# Beyond these a number is a slip of the hand, and would be found after hours, or by an overflow.
MOST_PROMPTS, MOST_THREADS, MOST_SEED = 1_000_000, 4096, 2**63 - 1

Level = Literal["node", "edge"]
Bos = Literal["auto", "yes", "no"]
LeadingSpace = Literal["auto", "yes", "no"]
Metric = Literal["logit-diff", "prob-diff", "kl", "nll"]
# What a circuit may hold.
Components = Literal["heads", "heads+mlps"]
# Which of a prompt's positions are averaged: all, the last, or those of a list a prompt, which results call "given".
Positions = Literal["mean", "last", "given"] | Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """What all cells of a scan have in common. A field's metadata is what its JSON schema says beside its type.

    Attributes:
        level: "node" scores heads; "edge" scores pairs of heads as well.
        n_prompts: prompt pairs to build from a task; in a result, those that were there.
        n_train: prompts that the autoencoder of a method with codes is trained on.
        positions: "mean" (over all of a prompt's positions), "last", or the positions to average: a list a prompt,
            all clean prompts, then all corrupted ones. A result says "given" for such lists.
        bos: whether a BOS token is put in front: "auto" (as the tokenizer does by itself), "yes" or "no".
        columns, skip_bad, leading_space: how a file of prompts is read (``headcodes.prompts.files.read_pairs``);
            columns as ``--columns`` takes them.
        corrupt: how corrupted prompts are made where the file has none (``headcodes.models.asked.ask``), "" where it
            has them.
        chat, system: whether prompts are rendered by the tokenizer's chat template, and its system message.
        device, dtype: of the model.
        projection: where its attention output projection lies, if it must be told (``load_model``).
        threads: CPU threads; results depend on the number.

    Raises:
        HeadcodesError: a value outside its bounds.
    """

    level: Level = field(default="node", metadata={"enum": ["node", "edge"]})
    n_prompts: int = field(default=250, metadata={"minimum": 1, "maximum": MOST_PROMPTS})
    n_train: int = field(default=10, metadata={"minimum": 1, "maximum": MOST_PROMPTS})
    positions: Positions = field(default="mean", metadata={"enum": ["mean", "last"]})
    bos: Bos = field(default="auto", metadata={"enum": ["auto", "yes", "no"]})
    columns: str = ""
    skip_bad: bool = False
    leading_space: LeadingSpace = field(default="auto", metadata={"enum": ["auto", "yes", "no"]})
    corrupt: str = field(default="", metadata={"enum": ["", "swap", "shuffle", "other"]})
    chat: bool = False
    system: str = ""
    device: str = "auto"
    dtype: str = field(default="auto", metadata={"enum": ["auto", "float32", "bfloat16", "float16"]})
    projection: str | None = None
    threads: int = field(default=1, metadata={"minimum": 1, "maximum": MOST_THREADS})

    @property
    def of_files(self) -> list[str]:
        """Names of those settings that were asked for and are of files of prompts alone."""
        asked = {"--columns": self.columns, "--skip-bad": self.skip_bad, "--corrupt": self.corrupt}
        return [name for name, value in (asked | {"--leading-space": self.leading_space != "auto"}).items() if value]

    def __post_init__(self) -> None:
        if self.system and not self.chat:
            raise HeadcodesError("--system must go with --chat", "it alone", "Give --chat too.")
        for each in fields(self):
            value = getattr(self, each.name)
            least, choices = each.metadata.get("minimum"), each.metadata.get("enum")
            if least is not None and value < least:
                raise HeadcodesError(f"{each.name} must be at least {least}", str(value), f"{each.default} is usual.")
            most = each.metadata.get("maximum")
            if most is not None and value > most:
                raise HeadcodesError(
                    f"{each.name} must be at most {most:,}", str(value)[:40], f"{each.default} is usual."
                )
            if choices is not None and isinstance(value, str) and value not in choices:
                known = ", ".join(map(repr, choices)) + (
                    " or a list of positions a prompt" if each.name == "positions" else ""
                )
                raise HeadcodesError(f"{each.name} must be one of {known}", repr(value), f"Use {each.default!r}.")


@dataclass(frozen=True, kw_only=True)
class Settings(SharedSettings):
    """Everything that one run is asked for.

    Attributes:
        model, revision: as ``load_model`` takes them.
        task, negative: a task and its kind of negative, or what a prompt file says of itself.
        method: an id of ``headcodes.methods.METHODS``.
        seed: of everything that the method draws.
    """

    model: str = "smollm2-135m"
    revision: str | None = None
    task: str = "ioi"
    negative: str | None = None
    method: str = "default"
    seed: int = field(default=0, metadata={"minimum": 0, "maximum": MOST_SEED})


def _types(settings: type[SharedSettings]) -> dict[str, type]:
    hints = get_type_hints(settings)
    return {each.name: hints[each.name] if hints[each.name] in (int, bool) else str for each in fields(settings)}


SHARED = tuple(_types(SharedSettings))
# Name -> type in files. What names the run stands first; a revision, a negative and a projection may be None too.
SETTINGS = {name: kind for name, kind in _types(Settings).items() if name not in SHARED} | _types(SharedSettings)


def plain(name: str) -> str:
    """Return a name from elsewhere that can be printed.

    Raises:
        ValueError: it has control characters, which command a terminal, or others that have no place in XML.
    """
    if re.search("[\x00-\x1f\x7f-\x9f\ufffe\uffff]", name):
        raise ValueError("have no control characters")
    return name


def check_names(**names: str) -> None:
    """Refuse names that cannot be printed, such as ``task="a\\x1bc"``.

    Raises:
        HeadcodesError: one has control characters.
    """
    for what, name in names.items():
        try:
            plain(name)
        except ValueError as error:
            raise HeadcodesError(f"'{what}' must {error}", ascii(name)[:80], "Name it otherwise.") from error


# How many heads are patched exactly: so many; "auto": in rank order until no more are confirmed; None: none.
Verify = int | Literal["auto"] | None


def parse_verify(text: str) -> Verify:
    """Return what ``--verify`` names: "auto", "off" (None) or a number of heads.

    Raises:
        HeadcodesError: anything else.
    """
    if text in ("auto", "off"):
        return "auto" if text == "auto" else None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise HeadcodesError("verify must be auto, off or a number of heads from 1 up", repr(text), "Use auto.")
    return int(text)


_SEEDS = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?(,[0-9]{1,19}(-[0-9]{1,19})?)*")
_MOST_SEEDS = 100_000  # a range with a digit too many should not fill the memory


def parse_seeds(seeds: str | list[int]) -> list[int]:
    """Return the seeds that ``"0-3,7"`` names, in order, each once.

    Raises:
        HeadcodesError: no such list, a range from high to low, or more than 100,000 seeds.
    """
    if not isinstance(seeds, str):
        return list(check_seeds(list(dict.fromkeys(seeds))))
    ranges: list[range] = []
    if _SEEDS.fullmatch(seeds):
        for part in seeds.split(","):
            first, _, last = part.partition("-")
            ranges.append(range(int(first), int(last or first) + 1))
    over = any(its and its[-1] > MOST_SEED for its in ranges)
    if not ranges or over or not all(ranges) or sum(its.stop - its.start for its in ranges) > _MOST_SEEDS:
        raise HeadcodesError(
            f"seeds must be numbers below 2^63 and ranges from low to high, at most {_MOST_SEEDS:,} seeds",
            repr(seeds[:80]),
            'Write "0-9" or "0,3,5-7".',
        )
    return list(dict.fromkeys(chain.from_iterable(ranges)))


def check_components(components: str) -> None:
    """Raise where ``components`` is none of ``Components``.

    Raises:
        HeadcodesError: it is not.
    """
    if components not in get_args(Components):
        raise HeadcodesError("components must be heads or heads+mlps", repr(components), "Choose one of them.")


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return the seeds as plain numbers.

    Raises:
        HeadcodesError: there is none, one is no number from 0 to 2^63 - 1, or one stands there twice.
    """
    try:
        found = tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        found = ()
    if not found or min(found) < 0 or max(found) >= 2**63 or len(set(found)) < len(found):
        raise HeadcodesError(
            "seeds must be whole numbers from 0 up, at least one, and none of them twice",
            repr(seeds),
            "Write seeds=range(10).",
        )
    return found
