"""What a report shows of one run: read from a result in memory, a folder of ``Result.save``, or a scan store."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headcodes.circuit.circuit import Circuit
from headcodes.graph import parse_part
from headcodes.prompts.pairs import PromptPairs
from headcodes.report.attention import AttentionPattern
from headcodes.report.curve_figures import Curve
from headcodes.settings import SETTINGS

# Why ``default`` took no gradients: as ``fallback`` in result.json has it.
NOT_ASKED_FOR = "gradients were not asked for"
# Labels of what is made from several seeds, of heads and of pairs.
SEED_LABELS = ("spread", "consensus")
# Name in result.json -> its label, in the order of the page's menu.
_PER_HEAD = {
    "head_scores": "score",
    "mention_scores": "mention score",
    "scores_changed": "score: changed",
    "scores_between": "score: between",
    "scores_last": "score: last",
    "p_values": "p-value",
    "q_values": "q-value",
    "head_spread": SEED_LABELS[0],
    "head_consensus": SEED_LABELS[1],
    "score_low": "score: low",
    "score_high": "score: high",
    "selection_frequency": "selected",
}
ARRAYS = (
    "codes",
    "scored_prompts",
    "pair_p_family",
    "pair_q_values",
    "head_scores_by_seed",
    "pair_spread",
    "pair_consensus",
)


def with_names_of_today(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays of a run or a cell under the names of ``ARRAYS``, also where an earlier version wrote them."""
    return {"scored_prompts" if name == "judged" else name: array for name, array in arrays.items()}


@dataclass(frozen=True)
class RunRecord:
    """One run, as a report needs it.

    Attributes:
        document: the object that ``--json`` prints (docs/result-json.md).
        circuit: the chosen heads and edges.
        arrays: ``codes`` int32 [n_prompt, n_component] and ``scored_prompts`` bool [n_prompt], clean prompts first, as
            in scores.safetensors; ``pair_p_family`` and ``pair_q_values`` [n_component, n_component], where pairs were
            tested; ``head_scores_by_seed`` [n_seed, n_layers, n_heads], ``pair_spread`` and ``pair_consensus``
            [n_component, n_component], where several seeds were asked for; ``causal_effects``, a number a head, where
            every head was patched.
        pairs: the prompts, None where they were not kept.
        attention: attention patterns of chosen heads on example prompts.
        curves: curves against a truth, or over circuit size.
        error: why a cell of a scan has no result; everything else is then as empty as it can be.
    """

    document: Mapping[str, Any]
    circuit: Circuit
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    pairs: PromptPairs | None = None
    attention: Sequence[AttentionPattern] = ()
    curves: Sequence[Curve] = ()
    error: str | None = None

    @property
    def model(self) -> str:
        """The model's name, with its revision as a command line takes it: ``name@revision``."""
        revision = self.document.get("revision")
        return f"{self.document['model']}@{revision}" if revision else str(self.document["model"])

    @property
    def head_values(self) -> dict[str, np.ndarray]:
        """Every number a head has, [n_layers, n_heads] float64 each, the score first; NaN where a head has none."""
        shape = self.circuit.n_layers, self.circuit.n_heads
        flat = {label: self.document[name] for name, label in _PER_HEAD.items() if name in self.document}
        if "causal_effects" in self.arrays:
            flat["causal effect"] = self.arrays["causal_effects"]
        values = {label: np.array(numbers, dtype=np.float64).reshape(shape) for label, numbers in flat.items()}
        if self.document.get("verification"):
            values["exact effect"] = np.full(shape, np.nan)
            for row in self.document["verification"]:
                part = parse_part(row["head"])
                if part is None:
                    raise ValueError(f"{row['head']!r} is no head")
                if part[1] is not None:
                    values["exact effect"][part] = row["effect"]
        return values

    @property
    def positions(self) -> dict[str, Any] | None:
        """Scores by place of the prompt, ``scores_by_position`` of result.json; None where there are none.

        Raises:
            ValueError: not in that form.
        """
        found = self.document.get("scores_by_position")
        if found is None:
            return None
        kind, labels, examples, scores = (found[name] for name in ("kind", "labels", "examples", "scores"))
        rows = np.array(list(scores.values()) or np.zeros((0, len(labels))), dtype=np.float64)
        fits = rows.shape == (len(scores), len(labels)) and len(examples) in (0, len(labels))
        if not fits or kind not in ("token", "run", "group"):
            raise ValueError("scores by position are not a number a place for each node")
        return {"kind": kind, "labels": labels, "examples": examples, "scores": scores}

    @property
    def group(self) -> tuple[Any, ...]:
        """What runs share that differ in nothing but their seed."""
        names = [name for name in SETTINGS if name != "seed"]
        return *(self.document.get(name) for name in names), *self.document.get("seeds", ())

    @property
    def seeds(self) -> str:
        """The seeds of the method, as the command line takes them: "3", or "0-9" where scores are means."""
        seeds = self.document.get("seeds") or [self.document["seed"]]
        following = len(seeds) > 1 and seeds == list(range(seeds[0], seeds[0] + len(seeds)))
        return f"{seeds[0]}-{seeds[-1]}" if following else ",".join(map(str, seeds))

    @property
    def command(self) -> str:
        """The command line that repeats the run, quoted for a shell.

        Prompts that came from a file stand as ``prompts.json``, the copy beside the result.
        """
        from headcodes import tasks

        run = self.document
        if "command" in run:
            return str(run["command"])
        words = ["headcodes", "discover", "--model", run["model"]]
        if run.get("revision"):
            words += ["--revision", run["revision"]]
        if run["task"] in tasks.ids() and run["negative"] in tasks.get(run["task"]).negatives:
            words += ["--task", run["task"], "--negative", run["negative"]]
            words += ["--n-prompts", run["n_prompts"]] if "n_prompts" in run else []
        else:
            words += ["--prompts", "prompts.json"]
        words += ["--method", run["method"], "--level", run["level"]]
        words += option_words(run, "n_train", "positions", "seed", "dtype", "threads", "bos", "fdr", "stable")
        if run.get("seeds"):
            words += ["--seeds", self.seeds]
        if "circuit_components" in run:
            words += ["--components", run["circuit_components"]]
        if run.get("verification"):
            words += ["--verify", run.get("verify") or len(run["verification"])]
        if run.get("fallback") == NOT_ASKED_FOR:
            words += ["--no-gradient"]
        return shlex.join(map(str, words))


def natural(text: str) -> list[str | int]:
    """Return a key that sorts texts by the numbers in them: step-4 before step-16."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d{1,18})", text))]


def option_words(settings: Mapping[str, Any], *names: str) -> list[Any]:
    """Return the settings that have a value, or are switched on, as words of a command line."""
    words: list[Any] = []
    for name in names:
        value, option = settings.get(name), "--" + name.replace("_", "-")
        if value is True:
            words.append(option)
        elif value is not None and value is not False and value != "":
            words += [option, value]
    return words
