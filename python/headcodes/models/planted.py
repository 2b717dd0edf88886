"""Planted circuits: small transformers built in code, in which the circuit is known exactly.

``planted-ioi`` does the task ``ioi`` and ``planted-induction`` the task ``induction``, with those tasks' own
prompts and a word-level tokenizer. A size may follow: ``planted-ioi-480`` has 480 heads. Each is a
MistralForCausalLM of transformers whose weights are set by hand: no training, no files, the same weights
everywhere. Norms are identities and MLPs are zero, so that the residual stream is a plain sum.

The residual stream has named channels, each a set of coordinates. Heads of the plant read and write the
channels of the mechanism. All other heads are distractors: they attend by position or by kind of word, they
read the same channels, and what they write is, per head, as large as what the heads of the plant write; but
they write into a channel that only distractors read. Their effect on the logits is therefore not small but
exactly zero, in floating point too, because that channel has only zero weights. Three kinds of distractor:
most read only what both prompts of a pair share; some read the channels that carry names and the mechanism's
signals too; and some are look-alikes, which attend and read exactly as a head of the plant does, and so tell
clean from corrupted as well as it. A method that looks for heads that tell the prompts apart is misled by
these, one that looks for large outputs by all.

ioi, after Wang et al. 2022 (arXiv 2211.00593), on "When Mary and John went to the store, John gave a drink
to":

- duplicate token: from the second John to the first; writes "this name was here before".
- S-inhibition: from the last word to the name so marked; writes that name as one not to attend to.
- name mover: from the last word to names other than that one; writes what it finds as the answer.
- negative name mover: the same, writing against the answer.

induction, after Olsson et al. 2022 (arXiv 2209.11895):

- previous token: writes at each word which word came before.
- induction: from a word to the place whose preceding word it was; writes what stands there as the answer.

Every signal is the sum of two heads', so that no head is spare: patching any one head of the plant changes
the logit difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headcodes import tasks
from headcodes.errors import HeadcodesError
from headcodes.graph import GroundTruth
from headcodes.models.adapt import from_transformers
from headcodes.models.planted_weights import (
    NAMES,
    Plant,
    add_distractors,
    blank_model,
    embed_words,
    ioi_words,
    layout,
    make_tokenizer,
    plant_induction,
    plant_ioi,
    set_norms,
)
from headcodes.tasks import induction, ioi

if TYPE_CHECKING:
    from headcodes.models.model import Model
    from headcodes.tasks import Task


DEFAULT_N_HEADS = 48


@dataclass(frozen=True)
class Planted:
    """A planted model and everything that is known about it.

    Attributes:
        model: the model, in fp32 on the CPU unless asked otherwise.
        task: the task it does; ``task.build(model.tokenizer, n)`` gives its prompts.
        truth: its circuit: heads by role, and which head feeds which.
    """

    model: Model
    task: Task
    truth: GroundTruth


def is_planted(name: object) -> bool:
    """Whether ``name`` names a planted model: ``planted-ioi``, ``planted-induction-480``."""
    return isinstance(name, str) and name.startswith("planted-")


def read_name(name: str) -> tuple[str, int | None]:
    """Return the task that a planted model's name names, and its number of heads where it names one.

    Raises:
        HeadcodesError: it names none, or a number of heads that cannot be laid out.
    """
    match = NAMES.fullmatch(name) if len(name) <= 40 else None
    if match is None:
        raise HeadcodesError(
            "the name of a planted model must be planted-ioi or planted-induction",
            repr(name),
            "A number of heads may follow: planted-ioi-480.",
        )
    if match[2] is None:
        return match[1], None
    layout(int(match[2]))
    return match[1], int(match[2])


def load(
    name: str,
    *,
    n_heads_total: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Planted:
    """Build a planted model.

    Args:
        name: ``planted-ioi`` or ``planted-induction``, with a number of heads behind it if wanted.
        n_heads_total: number of heads in all layers, 48 by default. It must have a divisor that leaves 6
            layers or more and room for the plant.
        device: where it is to run.
        dtype: of its weights. The mechanism is exact in float32; bfloat16 rounds it but keeps the answers.

    Raises:
        HeadcodesError: an unknown name, or a number of heads that cannot be laid out.
    """
    task_id, size = read_name(name)
    if size is not None and n_heads_total is not None and size != n_heads_total:
        raise HeadcodesError(
            "the number of heads must be given once", f"{size} and {n_heads_total}", "Leave one of them out."
        )
    total = size if size is not None else DEFAULT_N_HEADS if n_heads_total is None else n_heads_total
    n_layers, n_heads = layout(total)
    task = tasks.get(task_id)
    build = plant_ioi if task_id == "ioi" else plant_induction
    names, words = (ioi.NAMES, ioi_words()) if task_id == "ioi" else (induction.WORDS, [])
    tokenizer = make_tokenizer([*words, *(name.strip() for name in names)])
    module = blank_model(n_layers, n_heads, len(tokenizer))
    embed_words(module, tokenizer, [name.strip() for name in names], words)
    plant = Plant(module, n_layers, n_heads)
    build(plant)
    norms = set_norms(plant, tokenizer, task)
    planted = torch.stack([norms[head] for head in sorted(plant.taken)])
    generator = torch.Generator().manual_seed(total)
    for layer in range(n_layers):
        for head in range(n_heads):
            if (layer, head) not in plant.taken:
                add_distractors(plant, layer, head, generator)
    targets = planted[torch.randint(len(planted), (n_layers, n_heads), generator=generator)]

    def scales(layer: int, norms: Tensor) -> Tensor:
        free = torch.tensor([(layer, head) not in plant.taken for head in range(n_heads)])
        return torch.where(free, targets[layer] / norms, 1.0)

    set_norms(plant, tokenizer, task, scales)
    return _planted(module, tokenizer, task, plant, f"planted-{task_id}-{total}", device, dtype)


def _planted(
    module: Any,
    tokenizer: Any,
    task: Task,
    plant: Plant,
    name: str,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Planted:
    module = module.to(device, dtype).eval()
    module.config._name_or_path = name
    model = from_transformers(module, tokenizer, name, projection=None, owned=False)
    truth = GroundTruth(
        name="planted",
        task=task.id,
        model=name,
        n_layers=plant.n_layers,
        n_heads=plant.n_heads,
        roles={role: tuple(heads) for role, heads in plant.roles.items()},
        pairs=tuple(plant.pairs),
        source=task.source,
        note="exact by construction",
    )
    return Planted(model, task, truth)
