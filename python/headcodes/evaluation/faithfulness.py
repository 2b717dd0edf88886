"""Whether a circuit is enough, and whether it is needed: faithfulness, completeness, minimality.

A circuit here is a set of heads; embeddings, MLPs and norms always stay. Keeping a circuit means to ablate every other
head, at all positions. Where a circuit was chosen among heads and MLPs, the MLPs outside it are ablated as well. With m
the mean logit difference, "empty" all heads (and such MLPs) ablated and "full" none:

    faithfulness f(C)  = (m(C kept) - m(empty)) / (m(full) - m(empty))     1: the circuit alone does the task
    completeness       = f(all heads but C)                                0: nothing outside it does

Sources: Wang et al. 2022 (arXiv 2211.00593) for the questions; Mueller et al. 2025 (MIB, arXiv 2504.13151) for the
scale, CPR and CMD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from headcodes.activations.capture import capture
from headcodes.errors import HeadcodesError
from headcodes.graph import check_heads
from headcodes.interventions.edits import EditPlan
from headcodes.interventions.engine import AUTO, Compute, EngineUsed
from headcodes.interventions.metric import measure_log_p
from headcodes.interventions.walk import run_edited
from headcodes.metrics import normalised
from headcodes.models.devices import EachDevice
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from numpy.typing import ArrayLike

    from headcodes.graph import Part
    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs
    from headcodes.settings import Components


Ablation = Literal["zero", "mean", "resample"]


@dataclass(frozen=True)
class Behaviour:
    """What runs answer: arrays [n_pairs, n_run], the first run the clean one, the second the corrupted one.

    Attributes:
        logit_diff: ``prompts.task_check.logit_difference``.
        prob_diff: Probability of the right answers less that of the wrong ones.
        kl: KL(clean run || run) over the whole vocabulary, in nats.
        correct: 1 where the right answers outweigh the wrong ones.
        top1: 1 where the likeliest of all tokens is a right answer.
        engine: Which engine ran, and why.
    """

    logit_diff: Float[np.ndarray, "n_pairs n_run"]
    prob_diff: Float[np.ndarray, "n_pairs n_run"]
    kl: Float[np.ndarray, "n_pairs n_run"]
    correct: Float[np.ndarray, "n_pairs n_run"]
    top1: Float[np.ndarray, "n_pairs n_run"]
    engine: EngineUsed

    def means(self, run: int) -> dict[str, float]:
        """Return the mean over pairs of every measure of one run."""
        names = ("logit_diff", "prob_diff", "kl", "correct", "top1")
        return {name: float(getattr(self, name)[:, run].mean()) for name in names}


@dataclass(frozen=True)
class Faithfulness:
    """How a circuit does, with all other heads ablated, and the model without it.

    Attributes:
        faithfulness: f of the circuit; 1 is the whole model, 0 no head at all.
        completeness: f of all heads but the circuit; 0 is best.
        minimality: For every part of the circuit in its order, f(circuit) - f(circuit without it). About 0: not needed.
        full, empty, kept, ablated: Mean measures of the untouched model, of no heads, of the circuit kept, and ablated.
        ablation: What ablated heads are replaced by: "zero", "mean" (over corrupted prompts and positions) or
            "resample" (their activations on the corrupted prompt).
        n_pairs: How many pairs the means are over.
        engine: Which engine ran, and why.
    """

    faithfulness: float
    completeness: float
    minimality: list[float]
    full: dict[str, float]
    empty: dict[str, float]
    kept: dict[str, float]
    ablated: dict[str, float]
    ablation: str
    n_pairs: int
    engine: EngineUsed

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


@dataclass(frozen=True)
class FaithfulnessCurve:
    """Faithfulness and completeness of the best-ranked heads, by how many are taken.

    Attributes:
        sizes: Numbers of heads.
        faithfulness, completeness: Of the best-ranked ones.
        random_mean, random_low, random_high: Faithfulness of random circuits of the same sizes: mean, least and most
            over the draws; empty lists without draws.
        n_random: Draws a size.
        ablation, engine: See ``Faithfulness``.
    """

    sizes: list[int]
    faithfulness: list[float]
    completeness: list[float]
    random_mean: list[float]
    random_low: list[float]
    random_high: list[float]
    n_random: int
    ablation: str
    engine: EngineUsed

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


class _Keep(EditPlan):
    """Row r keeps the heads, and in the last column the MLPs, of circuit r - 2 and ablates the others."""

    def __init__(self, kept: Tensor, instead: Tensor | None, mlps_instead: Tensor | None) -> None:
        self.kept, self.instead, self.mlps_instead = kept, instead, mlps_instead
        self._there = EachDevice(*(each for each in (kept, instead, mlps_instead) if each is not None))
        self.edits_mlps = not bool(kept[:, :, -1].all())
        self.starts = [0] * len(kept)
        # A corrupted run is the clean one before the first changed token; zero and mean ablation change that part, too.
        self.whole_prompt = instead is not None

    def edit_heads(self, layer: int, z: Tensor) -> None:
        kept, *instead = self._there.on(z.device)
        other = z[1:2] if self.instead is None else instead[0][layer, :, : z.shape[-1]].to(z)
        z[2:] = torch.where(kept[:, layer, :-1][:, None, None, :, None], z[2:], other)

    def edit_mlp(self, layer: int, output: Float[Tensor, "row pair pos d_model"]) -> None:
        kept, *instead = self._there.on(output.device)
        other = output[1] if self.mlps_instead is None else instead[-1][layer].to(output)
        output[2:] = torch.where(kept[:, layer, -1][:, None, None, None], output[2:], other)

    def part(self, rows: slice) -> EditPlan:
        return _Keep(self.kept[rows], self.instead, self.mlps_instead)


def behaviour(
    model: Model,
    tokens: TokenPairs,
    kept: ArrayLike,
    *,
    ablation: Ablation = "resample",
    compute: Compute = AUTO,
) -> Behaviour:
    """Run the model with some heads kept and the others ablated, many choices of heads side by side.

    Args:
        model: Left as it was found.
        tokens: Pairs whose two prompts have equally many tokens.
        kept: Bool [n_run, n_layers, n_heads]: the heads that stay, run by run. A further column says which MLPs stay,
            computed again; without it all do.
        ablation: What the other heads (and MLPs) are replaced by: "zero", "mean" (over all corrupted prompts and
            positions) or "resample" (their activations on the corrupted prompt, position by position).
        compute: With which engine, in how much memory.

    Returns:
        Measures with two runs in front of those asked for: clean and corrupted.

    Raises:
        HeadcodesError: another ablation, another shape, or pairs of unequal length.
    """
    mask = torch.as_tensor(np.asarray(kept, dtype=bool))
    if mask.ndim != 3 or mask.shape[1] != model.n_layers or mask.shape[2] - model.n_heads not in (0, 1):
        raise HeadcodesError(
            f"kept must be [n_run, {model.n_layers}, {model.n_heads} or, with MLPs, {model.n_heads + 1}]",
            f"shape {tuple(mask.shape)}",
            "Use this model's shape.",
        )
    if mask.shape[2] == model.n_heads:
        mask = torch.nn.functional.pad(mask, (0, 1), value=True)
    instead, mlps_instead = None, None
    if ablation == "zero":
        instead = torch.zeros(model.n_layers, model.n_heads, model.d_head)
        mlps_instead = torch.zeros(model.n_layers, model.d_model)
    elif ablation == "mean":
        # Each prompt's mean over positions, weighted by its length: the mean over all corrupted tokens.
        lengths = torch.tensor([len(ids) for ids in tokens.corrupt], dtype=torch.float32)
        weights = (lengths / lengths.sum())[:, None, None]
        found = capture(model, tokens.corrupt, mlps=not bool(mask[:, :, -1].all()))[0]
        instead = (found.z.cpu() * weights).sum(0).view(model.n_layers, model.n_heads, model.d_head)
        mlps_instead = None if found.mlps is None else (found.mlps.cpu() * weights).sum(0)
    elif ablation != "resample":
        raise HeadcodesError("ablation must be zero, mean or resample", repr(ablation), "Choose one of them.")
    shape = (len(tokens), 2 + len(mask))
    measures = {name: np.empty(shape) for name in ("logit_diff", "prob_diff", "kl", "correct", "top1")}

    def done(indices: list[int], logits: list[list[Tensor]]) -> None:
        found: list[Tensor] = []
        for index, parts in zip(indices, logits, strict=True):
            log_p = torch.cat(parts).double().log_softmax(-1)
            right, wrong = tokens.answers[index], tokens.wrong_answers[index]
            best = log_p.argmax(1)
            of_pair = {
                "logit_diff": (logit_diff := measure_log_p("logit-diff", log_p, right, wrong)),
                "prob_diff": measure_log_p("prob-diff", log_p, right, wrong),
                "kl": -measure_log_p("kl", log_p, right, wrong),
                "correct": logit_diff > 0,
                "top1": torch.stack([best == token for token in right]).any(0),
            }
            found.append(torch.stack([of_pair[name].double() for name in measures]))
        # Fetched from their device at once.
        for name, values in zip(measures, torch.stack(found, 1).cpu().numpy(), strict=True):
            measures[name][indices] = values
        advance(len(indices))

    plan = _Keep(mask, instead, mlps_instead)
    with progress("running circuits", total=len(tokens)) as advance:
        used = run_edited(model, tokens, plan, done=done, compute=compute, whole_vocabulary=True)
    return Behaviour(**measures, engine=used)


def faithfulness(
    model: Model,
    tokens: TokenPairs,
    parts: Sequence[Part],
    *,
    components: Components = "heads",
    ablation: Ablation = "resample",
    minimality: bool = True,
) -> Faithfulness:
    """Say whether ``parts`` are enough, whether they are all, and which of them could go.

    Args:
        model: Left as it was found.
        tokens: Pairs whose two prompts have equally many tokens.
        parts: The circuit: heads as (layer, head), MLPs as (layer, None).
        components: What it was chosen among; with "heads", all MLPs stay.
        ablation: See ``behaviour``.
        minimality: Whether to take every part out in turn (a run each).

    Raises:
        HeadcodesError: a part that the model lacks; the full model is no other than the empty one; or as ``behaviour``.
    """
    circuit = membership(model, parts)
    without = [circuit & ~membership(model, [part]) for part in parts if minimality]
    kept = np.stack([np.zeros_like(circuit), circuit, ~circuit, *without])
    if components == "heads":
        kept = kept[:, :, :-1]
    found = behaviour(model, tokens, kept, ablation=ablation)
    f = normalised(found.logit_diff, empty=2)
    return Faithfulness(
        faithfulness=float(f[3]),
        completeness=float(f[4]),
        minimality=[float(f[3] - value) for value in f[5:]],
        full=found.means(0),
        empty=found.means(2),
        kept=found.means(3),
        ablated=found.means(4),
        ablation=ablation,
        n_pairs=len(tokens),
        engine=found.engine,
    )


def curve(
    model: Model,
    tokens: TokenPairs,
    head_scores: ArrayLike,
    *,
    sizes: Sequence[int] | None = None,
    n_random: int = 5,
    seed: int = 0,
    ablation: Ablation = "resample",
) -> FaithfulnessCurve:
    """Take more and more of the best-ranked heads, and random ones beside them.

    Args:
        model: Left as it was found.
        tokens: Pairs whose two prompts have equally many tokens.
        head_scores: [n_layers, n_heads], larger is better; ties to the lower index. With a further column, of MLPs,
            heads and MLPs are taken as they come.
        sizes: Numbers of heads; 0, 1, 2, 5, 10, 20, 50 ... and all unless told.
        n_random: Random circuits a size; 0 for none.
        seed: Of the random circuits.
        ablation: See ``behaviour``.

    Raises:
        HeadcodesError: as ``faithfulness``.
    """
    shape = np.shape(head_scores)
    real = np.flatnonzero(model.real_parts(shape[1]))
    n_all = len(real)
    steps = sorted(set(sizes)) if sizes is not None else default_sizes(n_all)
    order = real[np.argsort(-np.asarray(head_scores, dtype=np.float64).ravel()[real], kind="stable")]
    generator = np.random.default_rng(seed)
    orders = [order] + [real[generator.permutation(n_all)] for _ in range(n_random)]
    ranked = [[_first(which, size, shape) for size in steps] for which in orders]
    kept = np.stack([np.zeros(shape, dtype=bool), *(m for row in ranked for m in row), *(~m for m in ranked[0])])
    # No head and all heads are the same in every order: a fifth of these circuits are others of them again.
    unlike, back = np.unique(kept, axis=0, return_inverse=True)
    found = behaviour(model, tokens, unlike, ablation=ablation)
    f = normalised(found.logit_diff[:, [0, 1, *(2 + back.ravel())]], empty=2)[3:].reshape(len(orders) + 1, len(steps))
    random = f[1:-1]
    return FaithfulnessCurve(
        sizes=steps,
        faithfulness=f[0].tolist(),
        completeness=f[-1].tolist(),
        random_mean=random.mean(axis=0).tolist() if n_random else [],
        random_low=random.min(axis=0).tolist() if n_random else [],
        random_high=random.max(axis=0).tolist() if n_random else [],
        n_random=n_random,
        ablation=ablation,
        engine=found.engine,
    )


def default_sizes(n_all: int) -> list[int]:
    """Return 0, 1, 2, 5, 10, 20, 50 ... below ``n_all``, and ``n_all``."""
    steps = [step * 10**power for power in range(len(str(n_all))) for step in (1, 2, 5)]
    return [0, *(step for step in steps if step < n_all), n_all]


def membership(model: Model, parts: Sequence[Part]) -> Bool[np.ndarray, "n_layers n_heads+1"]:
    """Return True for the heads of a circuit, and in the last column for its MLPs.

    Raises:
        HeadcodesError: a part that the model does not have.
    """
    check_heads(((layer, head or 0) for layer, head in parts), model.n_layers, model.n_heads)
    mask = np.zeros((model.n_layers, model.n_heads + 1), dtype=bool)
    for layer, head in parts:
        mask[layer, -1 if head is None else head] = True
    return mask


def _first(order: np.ndarray[Any, Any], size: int, shape: tuple[int, ...]) -> Bool[np.ndarray, "n_layers n_column"]:
    mask = np.zeros(shape, dtype=bool)
    mask.ravel()[order[:size]] = True
    return mask
