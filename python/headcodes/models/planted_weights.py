"""The weights of planted models."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.graph import Head
from headcodes.models.hooks import capture_inputs
from headcodes.models.relied import turn_positions
from headcodes.tasks import ioi

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.tasks import Task


D_HEAD = 16
D_MODEL = 64
_MIN_LAYERS = 6
_MOST_HEADS = 50_000

# Channels of the residual stream. Words (or names) are told apart by a code of 8 numbers; the kind of a word
# by another, which all names share.
_CODE = slice(0, 8)
_WORD, _BOS, _NAME, _PREPOSITION = 8, 9, 10, 11
_KIND = slice(12, 20)
_DUPLICATE = 20
_SIGNAL = slice(21, 29)  # the name to inhibit, or the previous word
_ANSWER = slice(29, 37)
_NOISE = slice(37, D_MODEL)

# Dimensions of queries and keys. Rotary embedding turns dimensions i and i + 8 together. The first three
# pairs are turned and tell positions; the rest stand still and tell content.
_TURNED, _TURNED_TOO = slice(0, 3), slice(8, 11)
_STILL = [3, 4, 5, 6, 7, 11, 12, 13, 14, 15]
_CONTENT, _SINK, _EXTRA = _STILL[:8], _STILL[8], _STILL[9]
# Of all triples these make the mean cosine over one offset stand out best from those over others up to 48
# (0.56).
_TURNS = (0.49668253, 1.75205763, 2.13426479)

_N_CALIBRATION_PAIRS = 64
_LOGIT_SCALE = 8.0
NAMES = re.compile(r"planted-(ioi|induction)(?:-([0-9]+))?")


def layout(total: int) -> tuple[int, int]:
    """Return layers and heads a layer: as many layers as a third of the heads' square, the nearest that divides."""
    if total > _MOST_HEADS:
        raise HeadcodesError(
            f"a planted model must have at most {_MOST_HEADS:,} heads", f"{total} heads"[:40], "Take 4800."
        )
    layers = [n for n in range(_MIN_LAYERS, total // 3 + 1) if total % n == 0]
    if not layers:
        raise HeadcodesError(
            f"a planted model must have {_MIN_LAYERS} or more layers of 3 or more heads each, all equally many",
            f"{total} heads",
            "Take 48, 480 or 4800.",
        )
    n_layers = min(layers, key=lambda n: abs(n - math.sqrt(total / 3)))
    return n_layers, total // n_layers


def ioi_words() -> list[str]:
    """Every word and mark of the task ioi but its names, in a fixed order."""
    text = " ".join((*ioi.FRAMES, *ioi.PLACES, *ioi.OBJECTS))
    return list(dict.fromkeys(re.findall(r"\w+|[^\w\s]", re.sub(r"\{\w+\}", " ", text))))


def make_tokenizer(words: list[str]) -> Any:
    """Return a word-level tokenizer of transformers that knows ``words``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<s>", "<unk>", "<pad>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


class _Unnormed(nn.Module):
    """Stands where a norm would. Hands on a view, so that hooks before and behind it see two tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view_as(x)


def blank_model(n_layers: int, n_heads: int, d_vocab: int) -> Any:
    """Return a Mistral (a Llama whose head count need not divide d_model) with all weights zero, identity norms, and
    the positions' turns set by hand."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=d_vocab,
        hidden_size=D_MODEL,
        intermediate_size=1,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        sliding_window=None,
        head_dim=D_HEAD,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=2,
    )
    with torch.device("meta"):
        module = MistralForCausalLM(config)
    module = module.to_empty(device="cpu")
    for block in module.model.layers:
        block.input_layernorm = _Unnormed()
        block.post_attention_layernorm = _Unnormed()
    module.model.norm = _Unnormed()
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    turns = torch.zeros(D_HEAD // 2)
    turns[_TURNED] = torch.tensor(_TURNS)
    turn_positions(module, turns)
    return module


def _word_codes() -> Tensor:
    """Return 240 unit vectors of 8 numbers, no two closer than 60 degrees: the roots of the lattice E8."""
    roots = []
    for i, j in combinations(range(8), 2):
        for a, b in product((1.0, -1.0), repeat=2):
            root = [0.0] * 8
            root[i], root[j] = a, b
            roots.append(root)
    roots += [list(signs) for signs in product((0.5, -0.5), repeat=8) if math.prod(signs) > 0]
    return torch.tensor(roots) / math.sqrt(2)


def embed_words(module: Any, tokenizer: Any, names: list[str], words: list[str]) -> None:
    """Write every word's channels into the embedding, and read names and words off the answer channel."""
    generator = torch.Generator().manual_seed(0)
    codes = _word_codes()
    codes = codes[torch.randperm(len(codes), generator=generator)]
    kinds = torch.randn(len(words) + 1, 8, generator=generator).sign() / math.sqrt(8)
    embedding, unembedding = module.model.embed_tokens.weight.data, module.lm_head.weight.data
    embedding[0, _BOS] = 1.0
    for index, word in enumerate(words):
        row = embedding[tokenizer.convert_tokens_to_ids(word)]
        row[_WORD], row[_KIND] = 1.0, kinds[index]
        row[_PREPOSITION] = float(word in ("to", "for"))
    for index, name in enumerate(names):
        token = tokenizer.convert_tokens_to_ids(name)
        row = embedding[token]
        row[_WORD], row[_NAME], row[_KIND], row[_CODE] = 1.0, 1.0, kinds[-1], codes[index]
        unembedding[token, _ANSWER] = _LOGIT_SCALE * codes[index]


@dataclass
class Plant:
    """Writes heads into a blank model and remembers which they are."""

    module: Any
    n_layers: int
    n_heads: int
    roles: dict[str, list[Head]] = field(default_factory=dict)
    pairs: list[tuple[Head, Head]] = field(default_factory=list)

    @property
    def taken(self) -> set[Head]:
        """The heads that have a role."""
        return {head for heads in self.roles.values() for head in heads}

    def weights(self, layer: int, head: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return views of one head's query, key, value [d_head, d_model] and output [d_model, d_head] weights.

        Queries are to be written as scores: what attention divides by is multiplied in when ``finish`` is called.
        """
        attention = self.module.model.layers[layer].self_attn
        rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
        q, k, v = (getattr(attention, f"{slot}_proj").weight.data[rows] for slot in "qkv")
        return q, k, v, attention.o_proj.weight.data[:, rows]

    def place(self, role: str, depth: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take a free head at a share of the depth for ``role`` and return its weights."""
        layer = int(depth * self.n_layers)
        # Spread over a layer's heads, so that a head's number says nothing.
        head = (7 * layer + 3) % self.n_heads
        while (layer, head) in self.taken:
            head = (head + 1) % self.n_heads
        self.roles.setdefault(role, []).append((layer, head))
        return self.weights(layer, head)

    def feeds(self, sources: str, destinations: str) -> None:
        """Note that every head of one role feeds every head of another."""
        self.pairs += product(self.roles[sources], self.roles[destinations])


def _look_at_offset(q: Tensor, k: Tensor, offset: int, score: float) -> None:
    """Add to a head's scores ``score`` times the mean cosine that is 1 at ``offset`` words back. BOS gets none."""
    turns = torch.tensor(_TURNS) * offset
    q[_TURNED, _WORD] += _score(score / 3) * torch.cos(turns)
    q[_TURNED_TOO, _WORD] -= _score(score / 3) * torch.sin(turns)
    k[_TURNED, _WORD] = 1.0


def _score(score: float) -> float:
    """What a query must be for a score: attention divides by the root of d_head."""
    return score * math.sqrt(D_HEAD)


def _rest_on_bos(q: Tensor, k: Tensor, score: float) -> None:
    """Let a head attend to BOS, where there is nothing to read, unless something scores higher than ``score``."""
    q[_SINK, _WORD] = _score(score)
    k[_SINK, _BOS] = 1.0


def _channel(weight: Tensor, dimensions: list[int], channel: slice, value: float) -> None:
    weight[dimensions, range(channel.start, channel.stop)] = value


def _copy(v: Tensor, o: Tensor, source: slice, target: slice, gain: float) -> None:
    _channel(v, list(range(8)), source, 1.0)
    o[range(target.start, target.stop), list(range(8))] = gain


def plant_ioi(plant: Plant) -> None:
    """Write the heads that find the name mentioned once."""
    for depth in (0.0, 0.15):
        q, k, v, o = plant.place("duplicate token", depth)
        # A name seen before scores 255 or more, the name itself 220, another name up to 222, BOS 238.
        _channel(q, _CONTENT, _CODE, _score(300.0))
        _channel(k, _CONTENT, _CODE, 1.0)
        _look_at_offset(q, k, 0, -80.0)
        _rest_on_bos(q, k, 238.0)
        v[0, _NAME] = 1.0
        o[_DUPLICATE, 0] = 0.5
    for depth in (0.4, 0.5):
        q, k, v, o = plant.place("S-inhibition", depth)
        q[_EXTRA, _PREPOSITION] = _score(24.0)
        k[_EXTRA, _DUPLICATE] = 1.0
        # Half the mark is not enough; the whole is, but not by so much that no gradient were left.
        _rest_on_bos(q, k, 19.0)
        _copy(v, o, _CODE, _SIGNAL, 0.5)
    for role, depth, gain in (
        ("name mover", 0.7, 0.75),
        ("name mover", 0.8, 0.75),
        ("negative name mover", 0.9, -0.5),
    ):
        q, k, v, o = plant.place(role, depth)
        # The inhibited name loses 3 or more against any other: enough to decide, not so much that half would
        # do.
        q[_EXTRA, _PREPOSITION] = _score(24.0)
        k[_EXTRA, _NAME] = 1.0
        _channel(q, _CONTENT, _SIGNAL, _score(-6.0))
        _channel(k, _CONTENT, _CODE, 1.0)
        _rest_on_bos(q, k, 12.0)
        _copy(v, o, _CODE, _ANSWER, gain)
    plant.feeds("duplicate token", "S-inhibition")
    plant.feeds("S-inhibition", "name mover")
    plant.feeds("S-inhibition", "negative name mover")


def plant_induction(plant: Plant) -> None:
    """Write the heads that repeat what followed the last time."""
    for depth in (0.0, 0.2):
        q, k, v, o = plant.place("previous token", depth)
        # The word before scores 60, any other up to 34, BOS 45: the first word has none before it.
        _look_at_offset(q, k, 1, 60.0)
        _rest_on_bos(q, k, 45.0)
        _copy(v, o, _CODE, _SIGNAL, 0.5)
    for depth in (0.6, 0.8):
        q, k, v, o = plant.place("induction", depth)
        # A place whose preceding word is this one scores 24, other places up to 12, BOS 16.
        _channel(q, _CONTENT, _CODE, _score(24.0))
        _channel(k, _CONTENT, _SIGNAL, 1.0)
        _rest_on_bos(q, k, 16.0)
        _copy(v, o, _CODE, _ANSWER, 0.5)
    plant.feeds("previous token", "induction")


_PLAIN = [_WORD, _BOS, _NAME, _PREPOSITION, *range(_KIND.start, _KIND.stop)]
_LOOK_ALIKE_SHARE = 0.125
_SIGHTED_SHARE = 0.125


def add_distractors(plant: Plant, layer: int, head: int, generator: torch.Generator) -> None:
    """Write a distractor that reads as its kind does and writes at random into the channel for noise."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    q, k, v, o = plant.weights(layer, head)
    o[_NOISE] = torch.randn(o[_NOISE].shape, generator=generator)
    kind = uniform(0, 1)
    if kind < _LOOK_ALIKE_SHARE:
        # Only of heads in this layer or before it: what a later one reads is not written yet.
        models = sorted(taken for taken in plant.taken if taken[0] <= layer)
        for own, model in zip((q, k, v), plant.weights(*models[int(uniform(0, len(models)))]), strict=False):
            own.copy_(model)
        return
    reads = list(range(D_MODEL)) if kind < _LOOK_ALIKE_SHARE + _SIGHTED_SHARE else _PLAIN
    _look_at_offset(q, k, int(uniform(0, 7)), uniform(0, 12))
    _rest_on_bos(q, k, uniform(-4, 4))
    rows = len(_CONTENT)
    gain = math.sqrt(uniform(0, 8) / rows)
    q[_CONTENT] += _score(gain) * _random((rows, D_MODEL), reads, generator)
    k[_CONTENT] += gain * _random((rows, D_MODEL), reads, generator)
    v += _random((D_HEAD, D_MODEL), reads, generator)


def _random(shape: tuple[int, int], columns: list[int], generator: torch.Generator) -> Tensor:
    drawn = torch.zeros(shape)
    drawn[:, columns] = torch.randn(shape[0], len(columns), generator=generator)
    return drawn / math.sqrt(len(columns))


def set_norms(
    plant: Plant, tokenizer: Any, task: Task, scales: Callable[[int, Tensor], Tensor] | None = None
) -> Float[Tensor, "n_layers n_heads"]:
    """Return the norm of every head's output averaged over positions, its mean over prompts of the task.

    ``scales(layer, norms)`` says by what to multiply each head's output weights; each layer is scaled on its way
    through the one forward pass, before the next layer reads it.
    """
    rows = [tokenizer.encode(pair.clean) for pair in task.build(tokenizer, _N_CALIBRATION_PAIRS)]
    length = max(map(len, rows))
    tokens = torch.tensor([row + row[-1:] * (length - len(row)) for row in rows])
    weights = torch.tensor([[1 / len(row)] * len(row) + [0.0] * (length - len(row)) for row in rows])
    projections = [block.self_attn.o_proj for block in plant.module.model.layers]
    norms = torch.zeros(plant.n_layers, plant.n_heads)

    def measure(layer: int, x: Tensor) -> None:
        z = torch.einsum("bs,bsx->bx", weights, x).unflatten(-1, (plant.n_heads, D_HEAD))
        o = projections[layer].weight.data.unflatten(-1, (plant.n_heads, D_HEAD))
        norms[layer] = torch.einsum("bhd,mhd->bhm", z, o).norm(dim=-1).mean(0)
        if scales is not None:
            o *= scales(layer, norms[layer])[:, None]

    with torch.inference_mode(), capture_inputs(projections, measure):
        plant.module.model(tokens, use_cache=False)
    return norms
