"""Direct logit attribution: the direct effect of a head's output on the answer's logits at the last position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from headcodes.interventions.reads import Reads
from headcodes.interventions.runs import Answers, batches, ready, run
from headcodes.methods.findings import Findings
from headcodes.methods.stability import ByPair, abs_mean
from headcodes.models.devices import EachDevice, brought
from headcodes.models.memory import graph_bytes, node_bytes_per_token
from headcodes.models.weights import unembedded, unembedding
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs
    from headcodes.models.model import Model


def find(name: str, inputs: Inputs, level: Level, seed: int) -> Findings:
    """Score a head by |mean over positives of its last output . (right less wrong unembedding)|, norms frozen.

    Frozen: each prompt keeps the scale that the final norm (and Gemma's norm behind attention) gave its stream, so
    that contributions add up. Where there are several answers, each counts by its share in the logit difference's
    derivative. Corrupted prompts are not used.

    Raises:
        HeadcodesError: a model whose final norm is unknown.
    """
    model, tokens = inputs.model, inputs.tokens
    findings = Findings.of(model)
    found = torch.zeros(len(tokens), model.n_layers, model.n_heads, dtype=torch.float64)
    centres: bool | None = None  # of the norms behind attention, all of one kind; to find out makes the host wait
    with findings.timed("attribute"), ready(model), torch.no_grad(), progress("attributing", len(tokens)) as advance:
        for batch in batches(tokens, node_bytes_per_token(model), graph_bytes(model.device)):
            reads = Reads(model, slots=False)
            parts = run(model, batch.clean, batch, also=reads.recording())
            at = EachDevice(torch.arange(len(batch.rows)), batch.last)
            row, last = at.on(reads.final_in.device)
            direction = answer_direction(model, batch, parts.logits, reads.final_in[row, last])
            scores = []
            for layer, z in enumerate(parts.z):
                norm, written = reads.norm_behind("z", layer)
                row, last = at.on(z.device)
                if norm is None:
                    read = direction
                else:
                    frozen = FrozenNorm.of(norm, written[row, last], centres)
                    read, centres = frozen.back(direction), frozen.centres
                heads = model.by_head(layer, z[row, last].float()) * model.facts.scale("z", layer)
                weights = model.W_O[layer].to(heads.device).float()
                scores.append(torch.einsum("bhd,hdm,bm->bh", heads, weights, read.to(heads.device)))
            found[torch.tensor(batch.rows)] = brought(scores).transpose(0, 1)
            advance(len(batch.rows))
    findings.set_signed(found.mean(0))
    findings.set_by_pair(ByPair(found, abs_mean))
    return findings


def answer_direction(
    model: Model, answers: Answers, logits: Float[Tensor, "batch n_vocab"], final: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch d_model"]:
    """Return the direction in the residual stream that raises the right answers' logits against the wrong ones'.

    The unembedding of each answer, weighed by its share in the logit difference's derivative, seen through the final
    norm at the scale it has at each prompt's last position.

    Args:
        answers: of each prompt.
        logits: of the tokens in ``answers.vocab``, after each prompt's last token.
        final: what enters the final norm at each prompt's last position.
    """
    # d logsumexp = softmax over the same answers.
    sides = (answers.right, answers.wrong)
    shares = [logits.masked_fill(~chosen.to(logits.device), -torch.inf).softmax(1) for chosen in sides]
    weights = shares[0] - shares[1]
    if model.facts.plain_unembedding:
        vectors, _ = unembedding(model.unembed, answers.vocab)
        read = weights.to(vectors.device) @ vectors
    else:  # Linear it is all the same: its gradient is its weights.
        with torch.enable_grad():
            point = torch.zeros_like(final, requires_grad=True)
            logits = unembedded(model.unembed, point, answers.vocab, False)
            (read,) = torch.autograd.grad((weights.to(logits) * logits).sum(), point)
        read = read.float()
    assert model.final_norm is not None
    norm = FrozenNorm.of(model.final_norm, final)
    return norm.back(read) * model.facts.logit_scale


@dataclass(frozen=True)
class FrozenNorm:
    """A layer norm or RMS norm with its scale held at given points: x -> (x - mean?) * gain, without the bias.

    Attributes:
        gain: per point, what each entry is multiplied with.
        centres: whether the mean is taken away first (layer norm).
    """

    gain: Float[Tensor, "point d_model"]
    centres: bool

    @classmethod
    def of(cls, norm: nn.Module, points: Float[Tensor, "point d_model"], centres: bool | None = None) -> FrozenNorm:
        """Find out how ``norm`` acts at ``points``, by asking it, whatever family it is of.

        +-1000 in turn has mean 0, and scale 1000 beside which no epsilon counts: the norm's answer is its weight.

        Args:
            centres: whether the mean is taken away, where that is known; to find out makes the host wait.
        """
        # The norm answers on its own device, which need not be that of the layer before it.
        normed = norm.forward(points)
        points = points.to(normed.device)
        probe = torch.ones_like(points[:1]) * 1000
        probe[:, 1::2] *= -1
        plus, minus = norm.forward(probe).float(), norm.forward(-probe).float()
        weight = (plus - minus) / 2 * probe.float().sign()
        bias = (plus + minus) / 2
        # A layer norm does not notice a shift.
        if centres is None:
            centres = torch.allclose(norm.forward(probe + 1000).float() - bias, plus - bias, rtol=0.1)
        x = points.float()
        if centres:
            x = x - x.mean(-1, keepdim=True)
        shaped = x * weight
        scale = ((normed.float() - bias) * shaped).sum(-1, keepdim=True) / shaped.square().sum(-1, keepdim=True)
        return cls(weight * scale, centres)

    def back(self, direction: Float[Tensor, "point d_model"]) -> Float[Tensor, "point d_model"]:
        """Return the direction before the norm that ``direction`` behind it stands for."""
        read = direction.to(self.gain.device) * self.gain
        return read - read.mean(-1, keepdim=True) if self.centres else read
