"""Curves of scores against a truth, and over circuit size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes import metrics
from headcodes.errors import HeadcodesError
from headcodes.evaluation import truths
from headcodes.report.curve_figures import Curve

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import ArrayLike


def curves_against(scores: ArrayLike, labels: ArrayLike, label: str) -> list[Curve]:
    """Return the ROC and the precision-recall curve of scores against labels of the same shape.

    Raises:
        HeadcodesError: the shapes differ, or the labels know only one class.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if scores.shape != labels.shape:
        raise HeadcodesError(
            "a truth must have one label a head", f"{labels.shape} for {scores.shape}", "Check the model."
        )
    auc, precise = metrics.roc_auc(scores, labels), metrics.average_precision(scores, labels)
    false_positive, true_positive, _ = roc_curve(labels.ravel(), scores.ravel())
    precision, recall, _ = precision_recall_curve(labels.ravel(), scores.ravel())
    return [
        Curve("ROC", label, tuple(false_positive), tuple(true_positive), summary=f"AUC {auc:.3f}"),
        Curve("precision-recall", label, tuple(recall[::-1]), tuple(precision[::-1]), summary=f"AP {precise:.3f}"),
    ]


def published_curves(model: str, task: str, method: str, scores: Float[np.ndarray, "n_layers n_heads"]) -> list[Curve]:
    """Return curves against every published truth of this model and task; most models have none."""
    curves: list[Curve] = []
    for its_task, name in truths.names(task):
        truth = truths.get(its_task, name)
        # The same weights go by a name with and one without the owner.
        if truth.model.split("/")[-1] == model.rsplit("/", maxsplit=1)[-1] and truth.labels.shape == scores.shape:
            curves += curves_against(scores, truth.labels, f"{method} against {name}")
    return curves


def curves_of_evaluation(
    evaluation: Mapping[str, Any], method: str, scores: Float[np.ndarray, "n_layers n_heads"]
) -> list[Curve]:
    """Return what an ``Evaluation.as_dict()`` has to draw: ROC and precision-recall, faithfulness, completeness.

    Raises:
        KeyError, TypeError, ValueError: it is no evaluation, or one of another model.
    """
    curves: list[Curve] = []
    truth, sizes, areas = evaluation["truth"], evaluation["curve"], evaluation["areas"]
    if truth is not None:
        if "head_effects" in truth:
            effects = np.array(truth["head_effects"], dtype=np.float64).reshape(scores.shape)
            labels = metrics.largest(effects, truth["n_heads_in_circuit"])
        else:
            labels = truths.get(truth["task"], truth["name"]).labels
        curves += curves_against(scores, labels, f"{method} against {truth['name']}")
    if sizes is not None:
        x = tuple(float(size) for size in sizes["sizes"])
        area = {"faithfulness": "", "completeness": ""}
        if areas is not None:
            area["faithfulness"] = f"CPR {areas['cpr']:.3f}, CMD {areas['cmd']:.3f}"
        curves += [Curve(kind, method, x, tuple(sizes[kind]), summary=text) for kind, text in area.items()]
        mean, low, high = (tuple(sizes[f"random_{what}"]) for what in ("mean", "low", "high"))
        curves.append(Curve("faithfulness", "random heads", x, mean, low, high, chance=True))
    return curves
