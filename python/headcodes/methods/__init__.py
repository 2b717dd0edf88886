"""Methods: the ways of giving every head, and every pair of heads, a score.

One table names them all, so that listing them costs nothing; a method's module is imported when it is used.
"""

from __future__ import annotations

from headcodes.errors import HeadcodesError
from headcodes.methods.base import Cost as Cost
from headcodes.methods.base import Method as Method
from headcodes.settings import Level as Level

_ONEILL = "O'Neill & Bui 2024, arXiv 2405.12522"

METHODS: dict[str, Method] = {
    method.id: method
    for method in (
        Method(
            "default",
            "the best that model, machine and memory allow: attribution, or contrast where gradients cannot be had",
            f"headcodes, after Syed et al. 2023, with codes after {_ONEILL}",
            "backward",
            ("node", "edge"),
            "default",
            coded=True,
            recipe="attribution",
            confirmed=True,
            permutable=True,
            metric="logit-diff",
            by_pair=True,
        ),
        Method(
            "attribution",
            "EAP's products pair by pair, none for more than a logit: |mean| + mean magnitude; with codes",
            f"headcodes, after Syed et al. 2023, arXiv 2310.10348, with codes after {_ONEILL}",
            "backward",
            ("node", "edge"),
            "attribution",
            coded=True,
            recipe="attribution",
            confirmed=True,
            permutable=True,
            metric="logit-diff",
            by_pair=True,
        ),
        Method(
            "contrast",
            "change of a head's output towards the answer, plus its change of the stream in pairs whose codes differ",
            f"headcodes, with codes after {_ONEILL}",
            "forward",
            ("node", "edge"),
            "contrast",
            coded=True,
            recipe="contrast",
            confirmed=True,
            permutable=True,
            measures_changes=True,
            seeded=True,
        ),
        Method(
            "paper",
            "the published recipe, to the letter",
            _ONEILL,
            "forward",
            ("node", "edge"),
            "code_sets",
            coded=True,
            recipe="paper",
            permutable=True,
            seeded=True,
        ),
        Method(
            "paper-scaled",
            "the published recipe on inputs divided by their standard deviation",
            _ONEILL,
            "forward",
            ("node", "edge"),
            "code_sets",
            coded=True,
            recipe="paper-scaled",
            permutable=True,
            seeded=True,
        ),
        Method(
            "mean-diff",
            "norm of the difference between a head's mean outputs on positives and negatives",
            "no paper: the plain baseline",
            "forward",
            ("node",),
            "mean_diff",
        ),
        Method(
            "code-flip",
            "share of pairs in which a head's code changes",
            f"headcodes, with codes after {_ONEILL}",
            "forward",
            ("node",),
            "code_flip",
            coded=True,
            recipe="code-flip",
            seeded=True,
            by_pair=True,
        ),
        Method(
            "dla",
            "direct logit attribution: what a head writes at the last position, read as right against wrong logits",
            "Elhage et al. 2021, transformer-circuits.pub; Wang et al. 2022, arXiv 2211.00593",
            "forward",
            ("node",),
            "dla",
            by_pair=True,
        ),
        Method(
            "act-norm",
            "mean norm of a head's output",
            "no paper: a floor",
            "forward",
            ("node",),
            "act_norm",
            by_pair=True,
        ),
        Method("random", "uniform random scores", "no paper: a floor", "none", ("node",), "random", seeded=True),
        Method(
            "hisp",
            "head importance score: gradient of the metric with respect to a gate on each head",
            "Michel et al. 2019, arXiv 1905.10650, as Conmy et al. 2023 ran it",
            "backward",
            ("node",),
            "hisp",
            metric="logit-diff",
            by_pair=True,
        ),
        Method(
            "eap",
            "edge attribution patching: corruption times gradient, one backward pass",
            "Syed et al. 2023, arXiv 2310.10348",
            "backward",
            ("node", "edge"),
            "eap",
            metric="logit-diff",
            by_pair=True,
        ),
        Method(
            "eap-ig-inputs",
            "EAP with gradients integrated over inputs between corrupted and clean, 5 steps",
            "Hanna et al. 2024, arXiv 2403.17806",
            "backward",
            ("node", "edge"),
            "eap",
            metric="logit-diff",
            by_pair=True,
        ),
        Method(
            "eap-ig-inputs-left",
            "eap-ig-inputs with the corrupted end of the path instead of the clean one, as the authors' program has it",
            "Hanna et al. 2024, arXiv 2403.17806, and their program since",
            "backward",
            ("node", "edge"),
            "eap",
            metric="logit-diff",
            by_pair=True,
        ),
        Method(
            "eap-ig-activations",
            "EAP with gradients integrated over each layer's own activations, 5 steps",
            "Hanna et al. 2024, arXiv 2403.17806; Marks et al. 2024, arXiv 2403.19647",
            "backward",
            ("node", "edge"),
            "eap",
            metric="logit-diff",
            by_pair=True,
        ),
        Method(
            "relp",
            "EAP with relevance propagated in place of gradients: norms' scales and activations' slopes held constant",
            "Rezaei Jafari et al. 2025, arXiv 2508.21258, as their program has it",
            "backward",
            ("node",),
            "relp",
            metric="logit-diff",
            by_pair=True,
        ),
        Method(
            "relp-ah",
            "relp with attention patterns held constant too",
            "Rezaei Jafari et al. 2025, arXiv 2508.21258, with their rule for attention",
            "backward",
            ("node",),
            "relp",
            metric="logit-diff",
            by_pair=True,
        ),
        Method(
            "atp-qk",
            "attribution patching of queries, keys and values apart, with attention worked out anew",
            "Kramár et al. 2024, arXiv 2403.00745, without GradDrop",
            "backward",
            ("node",),
            "atp_star",
            metric="logit-diff",
            by_pair=True,
        ),
        Method(
            "atp-star",
            "atp-qk, and magnitudes averaged over backward passes that each leave out a layer (GradDrop)",
            "Kramár et al. 2024, arXiv 2403.00745",
            "backward",
            ("node",),
            "atp_star",
            metric="logit-diff",
            by_pair=True,
        ),
        Method(
            "hybrid",
            "EAP's products pair by pair, weighed by whether the head's code changes; one backward pass",
            "headcodes, after Syed et al. 2023 and O'Neill & Bui 2024",
            "backward",
            ("node",),
            "hybrid",
            coded=True,
            seeded=True,
            metric="logit-diff",
            by_pair=True,
        ),
        Method(
            "acdc",
            "automated circuit discovery: edges (heads in large models) removed from the logits back, at 21 thresholds",
            "Conmy et al. 2023, arXiv 2304.14997",
            "ablation",
            ("node", "edge"),
            "acdc",
            metric="kl",
        ),
        Method(
            "sp",
            "subnetwork probing: a learned gate on every head",
            "Cao et al. 2021, arXiv 2104.03514, as Conmy et al. 2023 ran it",
            "backward",
            ("node",),
            "sp",
            seeded=True,
            metric="kl",
        ),
        Method(
            "patching",
            "exact resample patching of every head (edge level: of every path between two heads)",
            "Wang et al. 2022, arXiv 2211.00593",
            "ablation",
            ("node", "edge"),
            "patching",
            metric="logit-diff",
            by_pair=True,
        ),
    )
}


# Methods whose scores are about whole prompts: no choice of positions changes them.
EVERYWHERE = ("dla", "random", "acdc", "sp", "patching")


# Methods that score heads alone; all others score MLPs beside them, on one scale, where that is asked for.
HEADS_ONLY = ("dla", "random", "hisp", "acdc", "sp", "atp-qk", "atp-star")


def get(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        HeadcodesError: there is none of that name.
    """
    if name not in METHODS:
        raise HeadcodesError(
            "a method must be one of " + ", ".join(METHODS), repr(name), "`headcodes methods` describes them."
        )
    return METHODS[name]
