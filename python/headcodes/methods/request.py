"""What may be asked of a method, and what may be asked together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headcodes import methods
from headcodes.errors import HeadcodesError
from headcodes.interventions.metric import METRICS
from headcodes.methods.stability import check_stable
from headcodes.settings import check_components, check_seeds

if TYPE_CHECKING:
    from headcodes.settings import Verify


def check_request(
    method: str,
    fdr: float | None = None,
    verify: Verify = None,
    seeds: Sequence[int] | None = None,
    metric: str | None = None,
    positions: Any = "mean",
    components: str = "heads",
    stable: float | None = None,
) -> None:
    """Refuse what cannot be done before any work: a typing error should not cost a forward pass.

    Raises:
        HeadcodesError: see ``discover``.
    """
    chosen = methods.get(method)
    if metric is not None and metric not in METRICS:
        raise HeadcodesError(
            f"a metric must be one of {', '.join(METRICS)}", repr(metric), "Leave it at the method's own."
        )
    if metric is not None and chosen.metric is None:
        others = ", ".join(name for name, other in methods.METHODS.items() if other.metric)
        raise HeadcodesError(
            "a method whose metric is chosen must work with one",
            f"metric= with {method!r}",
            f"Use one of: {others}.",
        )
    check_components(components)
    if components == "heads+mlps" and method in methods.HEADS_ONLY:
        raise HeadcodesError(
            "a circuit with MLPs must come from a method that scores them",
            f"heads+mlps with {method!r}",
            f"All but {', '.join(methods.HEADS_ONLY)} do.",
        )
    if components == "heads+mlps" and fdr is not None:
        raise HeadcodesError(
            "a permutation test must be of heads' codes alone", f"fdr={fdr} with heads+mlps", "Leave one out."
        )
    if positions != "mean" and method in methods.EVERYWHERE:
        raise HeadcodesError(
            "a method whose positions are chosen must look at some",
            f"{positions if isinstance(positions, str) else 'a list'} with {method!r}",
            f"All but {', '.join(methods.EVERYWHERE)} do.",
        )
    if fdr is not None and not 0 < fdr <= 1:
        raise HeadcodesError("fdr must lie in (0, 1]", str(fdr), "0.05 is usual.")
    if fdr is not None and not chosen.permutable:
        others = ", ".join(name for name, other in methods.METHODS.items() if other.permutable)
        raise HeadcodesError(
            "a method tested by permutation must count codes", f"fdr= with {method!r}", f"Use one of: {others}."
        )
    if verify is not None and verify != "auto" and not (isinstance(verify, int) and verify >= 1):
        raise HeadcodesError(
            'verify must be a number of heads from 1 up, "auto" or None', repr(verify), "None patches no head."
        )
    if stable is not None:
        check_stable(stable, method, fdr=fdr, verify=verify, seeds=seeds, components=components)
    if seeds is not None:
        check_seeds(seeds)
        if fdr is not None:
            raise HeadcodesError(
                "a permutation test must be of one seed's codes", f"fdr={fdr} with {len(seeds)} seeds", "Leave one out."
            )
