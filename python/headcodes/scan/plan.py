"""What a scan is to do: a plan, the cells it consists of, and what makes two cells the same."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from headcodes import methods, tasks
from headcodes.errors import HeadcodesError
from headcodes.files import checksum
from headcodes.models.sources import exact_dtype
from headcodes.prompts.files import parse_columns, source_checksum
from headcodes.prompts.tables import SUFFIXES
from headcodes.provenance import code_checksum, library_versions
from headcodes.settings import MOST_SEED, SHARED, Settings, SharedSettings, parse_seeds, parse_verify


@dataclass(frozen=True, kw_only=True)
class Cell(Settings):
    """One run of a scan: a method with a seed on a model and a set of prompts.

    Attributes:
        task, negative: of a built-in task; the task of a prompt file is its path, and it has no negative here.
        prompts: checksum of the prompt file or data set, "" for a built-in task.
        prompt_seed: of the prompts: all seeds of a method share them.
        stable: as ``headcodes.discover`` takes it.
        verify: as the command line takes it: "off", "auto" or a number of heads.
        dtype: never "auto": what auto stood for is part of what a cell is.
    """

    prompts: str = ""
    prompt_seed: int = field(default=0, metadata={"minimum": 0, "maximum": MOST_SEED})
    stable: float | None = None
    verify: str = "off"

    def identity(self) -> str:
        """Return 32 hexadecimal digits that differ as soon as settings, model, prompts, code or libraries differ."""
        content = [vars(self), _model_checksum(self.model, self.revision), code_checksum(), library_versions()]
        return checksum(json.dumps(content, sort_keys=True).encode())[:32]

    @property
    def label(self) -> str:
        """A short name for people."""
        model = self.model if self.revision is None else f"{self.model}@{self.revision}"
        return f"{model} {self.task} {self.method} seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan(SharedSettings):
    """Every combination of models, tasks, methods and seeds.

    Attributes:
        models: (source, revision) pairs.
        tasks: (task id, negative) pairs, or (path of a prompt file or ``hf:NAME[:split]``, None). How files are read is
            the same for all of them.
        prompt_seed: of the prompts, for all seeds.
        stable: of every cell, as ``headcodes.discover`` takes it.
        verify: of every cell: "off", "auto" or a number of heads (``headcodes.settings.parse_verify``).
    """

    models: tuple[tuple[str, str | None], ...]
    tasks: tuple[tuple[str, str | None], ...] = (("ioi", None),)
    methods: tuple[str, ...] = ("default",)
    seeds: tuple[int, ...] = (0,)
    prompt_seed: int = field(default=0, metadata={"minimum": 0, "maximum": MOST_SEED})
    stable: float | None = None
    verify: str = "off"

    def __post_init__(self) -> None:
        super().__post_init__()
        verify = parse_verify(self.verify)
        for name in self.methods:
            method = _known(name, methods.METHODS, "method", "headcodes methods")
            if self.level not in methods.get(method).levels:
                raise HeadcodesError(
                    f"every method of a plan must score its level ({self.level})",
                    repr(name),
                    "Leave it out, or make two plans.",
                )
            if self.stable is not None:
                from headcodes.methods.stability import check_stable

                check_stable(self.stable, method, verify=verify)
        if self.columns:
            parse_columns(self.columns)
        if self.of_files and not any(_is_file(task) for task, _ in self.tasks):
            raise HeadcodesError(
                "how files of prompts are read must be asked where there is one",
                ", ".join(self.of_files),
                "Name a file.",
            )
        for task, negative in self.tasks:
            if _is_file(task):
                if not (task.startswith("hf:") or Path(task).is_file()):
                    raise HeadcodesError("a prompt file of a plan must exist", repr(task), "Check the path.")
                continue
            known = tasks.get(_known(task, tasks.ids(), "task", "headcodes tasks"))
            if negative is not None:
                _known(negative, known.negatives, f"negative of {task}", "headcodes tasks")

    def cells(self, here: bool = True) -> Iterator[Cell]:
        """Yield every cell, those of one model together and within it those of one set of prompts.

        Args:
            here: whether they will be done on this machine, which must then have the device.
        """
        plan = self.resolved(here)
        for model, revision in plan.models:
            settings = {name: getattr(plan, name) for name in PLAN_SETTINGS} | {"model": model, "revision": revision}
            if exact_dtype(model, self.dtype) != self.dtype:
                settings["dtype"] = exact_dtype(model, self.dtype)
            for task, named in plan.tasks:
                prompts = source_checksum(task) if _is_file(task) else ""
                negative = None if prompts else named or tasks.get(task).negatives[0]
                settings |= {"task": task, "negative": negative, "prompts": prompts}
                for method in plan.methods:
                    for seed in plan.seeds:
                        yield Cell(method=method, seed=seed, **settings)

    def resolved(self, here: bool = True) -> Plan:
        """Return the same plan with what "auto" stands for on this machine."""
        from headcodes.models.devices import choose_device, choose_dtype

        if not here and self.device != "auto" and self.dtype != "auto":
            return self
        device = choose_device(self.device)
        dtype = str(choose_dtype(self.dtype, device)).removeprefix("torch.")
        return replace(self, device=str(device), dtype=dtype)

    @classmethod
    def from_yaml(cls, path: Path | str) -> Plan:
        """Read a plan file (docs/scan.md); ``plan_file.PlanFile`` is its schema.

        Raises:
            HeadcodesError: the file cannot be read or does not follow the schema; the message names the line.
        """
        from headcodes.scan.plan_file import read

        return read(path)

    @classmethod
    def from_lists(
        cls, models: str, tasks: str, methods: str, seeds: str, revision: str | None = None, **settings: Any
    ) -> Plan:
        """Return the plan of comma-separated lists, as the command line takes them.

        A model is ``name``, of ``revision``, or ``name@revision``; a task ``ioi`` or ``ioi:abc`` (its negative), or a
        prompt file.

        Raises:
            HeadcodesError: an unknown task or method, seeds that are none, an empty list.
        """

        def parts(text: str, what: str) -> list[str]:
            found = [part.strip() for part in text.split(",") if part.strip()]
            if not found:
                raise HeadcodesError(
                    f"a scan must have at least one of --{what}", repr(text), "Name some, parted by commas."
                )
            return found

        sources = []
        for model in parts(models, "models"):
            name, _, its_own = model.rpartition("@")
            sources.append((name, its_own) if name and not Path(model).exists() else (model, revision))
        named: list[tuple[str, str | None]] = []
        for task in parts(tasks, "tasks"):
            name, _, negative = task.partition(":")
            named.append((task, None) if _is_file(task) else (name, negative or None))
        return cls(
            models=tuple(sources),
            tasks=tuple(named),
            methods=tuple(parts(methods, "methods")),
            seeds=tuple(parse_seeds(seeds)),
            **settings,
        )


# What all cells of a plan share, as plan files and command lines name it.
PLAN_SETTINGS = (*SHARED, "prompt_seed", "stable", "verify")


def _is_file(task: str) -> bool:
    return task.startswith("hf:") or Path(task).suffix.lower() in SUFFIXES


def _known(name: str, names: Any, what: str, where: str) -> str:
    if name in names:
        return name
    close = difflib.get_close_matches(name, list(names), n=1)
    mend = f"Did you mean {close[0]!r}? " if close else ""
    raise HeadcodesError(f"a {what} of a plan must be a known one", repr(name), f"{mend}`{where}` lists them.")


@cache
def _model_checksum(model: str, revision: str | None) -> str:
    from headcodes.models.sources import hub_answers, resolve

    if model.startswith("planted-"):
        return model  # made by code
    try:
        found = resolve(model, revision)
        if found.checksum is None and found.kind == "hub" and hub_answers():
            from huggingface_hub import HfApi

            # The same checksum that the model will have once it is on this machine.
            return checksum(f"hub {found.name} {HfApi().model_info(found.name, revision=revision).sha}".encode())
    except (OSError, HeadcodesError):
        # Its cells fail with the reason when they are done; once the model is there, they are others.
        return f"nothing there: {model} {revision}"
    return found.checksum or f"{found.kind} {found.name} {revision}"


def forget_models() -> None:
    """Look at models' files anew for the next identity; files may change while a process lives."""
    _model_checksum.cache_clear()
