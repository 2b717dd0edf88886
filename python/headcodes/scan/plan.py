"""What a scan is to do: a plan, the cells it consists of, and what makes two cells the same."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from headcodes import methods, tasks
from headcodes.errors import HeadcodesError
from headcodes.files import MAX_DEPTH, checksum, read_text, reading
from headcodes.models.sources import exact_dtype
from headcodes.prompts.files import parse_columns, source_checksum
from headcodes.prompts.tables import SUFFIXES
from headcodes.provenance import code_checksum, library_versions
from headcodes.settings import MOST_SEED, SHARED, Settings, SharedSettings, json_schema, parse_seeds

_MAX_BYTES = 1 << 20  # of a plan file


@dataclass(frozen=True, kw_only=True)
class Cell(Settings):
    """One run of a scan: a method with a seed on a model and a set of prompts.

    Attributes:
        task, negative: of a built-in task; the task of a prompt file is its path, and it has no negative here.
        prompts: checksum of the prompt file or data set, "" for a built-in task.
        prompt_seed: of the prompts: all seeds of a method share them.
        stable: as ``headcodes.discover`` takes it.
        dtype: never "auto": what auto stood for is part of what a cell is.
    """

    prompts: str = ""
    prompt_seed: int = field(default=0, metadata={"minimum": 0, "maximum": MOST_SEED})
    stable: float | None = None

    def identity(self) -> str:
        """Return 32 hexadecimal digits that differ as soon as settings, model, prompts, code or libraries differ."""
        content = [asdict(self), _model_checksum(self.model, self.revision), code_checksum(), library_versions()]
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
    """

    models: tuple[tuple[str, str | None], ...]
    tasks: tuple[tuple[str, str | None], ...] = (("ioi", None),)
    methods: tuple[str, ...] = ("default",)
    seeds: tuple[int, ...] = (0,)
    prompt_seed: int = field(default=0, metadata={"minimum": 0, "maximum": MOST_SEED})
    stable: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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

                check_stable(self.stable, method)
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
        """Read a plan file (docs/scan.md); ``plan_schema`` is what it follows.

        Raises:
            HeadcodesError: the file cannot be read or does not follow the schema; the message names the line.
        """
        import jsonschema
        import yaml

        mend = "docs/scan.md describes plans."
        text = read_text(path, "a plan file", mend, max_bytes=_MAX_BYTES)
        path = Path(path)
        with reading("a plan file must be YAML", path, mend):
            if _depth(text) > MAX_DEPTH:  # the library takes the square of it
                raise HeadcodesError(
                    f"a plan file must be nested at most {MAX_DEPTH} deep", f"{path}, nested deeper", mend
                )
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
                # A few lines of them can stand for more than any memory holds.
                raise HeadcodesError("a plan file must have no aliases", f"{path}, which has some", "Write it out.")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            data = yaml.safe_load(text)
            _refuse_twice(root, path)
            json.dumps(data, ensure_ascii=False, default=str).encode()
        validator = jsonschema.Draft202012Validator(plan_schema())
        found = jsonschema.exceptions.best_match(validator.iter_errors(data))
        if found is not None:
            raise _schema_error(found, root, path)
        try:
            return cls(
                models=tuple(_models_of(data["models"])),
                tasks=tuple(_task_of(row) for row in data.get("tasks", ["ioi"])),
                methods=tuple(data.get("methods", ["default"])),
                seeds=tuple(parse_seeds(data.get("seeds", "0"))),
                **{name: data[name] for name in PLAN_SETTINGS if name in data},
            )
        except HeadcodesError as error:
            lines = (n for n, line in enumerate(text.splitlines(), start=1) if error.got.strip("'\"") in line)
            where = f"{path}, line {line}: " if (line := next(lines, None)) else f"{path}: "
            raise HeadcodesError(error.must, where + error.got, error.mend) from error

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
PLAN_SETTINGS = (*SHARED, "prompt_seed", "stable")


def plan_schema() -> dict[str, Any]:
    """Return the JSON schema of plan files."""
    text = {"type": "string", "minLength": 1}

    def some(item: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "minItems": 1, "items": item}

    def one(**properties: Any) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": False, "properties": properties}

    model = one(source=text, revisions=some(text)) | {"required": ["source"]}
    prompts = one(id={"type": "string"}, negative={"type": "string"}, prompts=text)
    seeds = {"type": "string", "pattern": "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "headcodes scan plan",
        "required": ["models"],
        **one(
            models=some({"anyOf": [text, model]}),
            tasks=some({"anyOf": [text, prompts | {"oneOf": [{"required": ["id"]}, {"required": ["prompts"]}]}]}),
            methods=some({"type": "string"}),
            seeds={"anyOf": [seeds, some({"type": "integer", "minimum": 0})]},
            **{name: rule for name, rule in json_schema(Plan).items() if name in PLAN_SETTINGS}
            | {"stable": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}},
        ),
    }


def _depth(text: str) -> int:
    """Return how deep the brackets of a text are nested at most, those in strings included."""
    depth = deepest = 0
    for mark in re.findall(r"[\[\]{}]", text):
        depth += 1 if mark in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _models_of(rows: list[Any]) -> Iterator[tuple[str, str | None]]:
    for row in rows:
        if isinstance(row, str):
            yield row, None
        else:
            for revision in row.get("revisions", [None]):
                yield row["source"], revision


def _task_of(row: Any) -> tuple[str, str | None]:
    if isinstance(row, str):
        return row, None
    return row.get("id") or row["prompts"], row.get("negative")


def _is_file(task: str) -> bool:
    return task.startswith("hf:") or Path(task).suffix.lower() in SUFFIXES


def _known(name: str, names: Any, what: str, where: str) -> str:
    if name in names:
        return name
    close = difflib.get_close_matches(name, list(names), n=1)
    mend = f"Did you mean {close[0]!r}? " if close else ""
    raise HeadcodesError(f"a {what} of a plan must be a known one", repr(name), f"{mend}`{where}` lists them.")


def _node_at(root: Any, path: list[Any]) -> Any:
    """Return the YAML node that a path of keys and indices leads to."""
    node = root
    for step in path:
        if isinstance(step, int):
            node = node.value[step]
        else:
            node = next(value for key, value in node.value if key.value == step)
    return node


def _schema_error(found: Any, root: Any, path: Path) -> HeadcodesError:
    node = _node_at(root, list(found.absolute_path)) if root is not None else None
    got, mend = found.message, "docs/scan.md describes plans."
    if found.validator == "additionalProperties" and node is not None:
        known = list(found.schema["properties"])
        key = next(key for key, _ in node.value if key.value not in known)
        node, got = key, f"the unknown key {key.value!r}"
        close = difflib.get_close_matches(key.value, known, n=1)
        mend = f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(known)}."
    where = f"{path}, line {node.start_mark.line + 1}" if node is not None else f"{path}"
    return HeadcodesError("a plan file must follow its schema", f"{where}: {got}", mend)


def _refuse_twice(node: Any, path: Path) -> None:
    """YAML keeps the last of two equal keys without a word; a plan should not."""
    if node is None or isinstance(node.value, str):
        return
    seen: set[str] = set()
    for child in node.value:
        if not isinstance(child, tuple):
            _refuse_twice(child, path)
            continue
        key, value = child
        if key.value in seen:
            line = key.start_mark.line + 1
            raise HeadcodesError(
                "a plan file must name every key once", f"{path}, line {line}: {key.value!r} again", "Leave one out."
            )
        seen.add(key.value)
        _refuse_twice(value, path)


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
