"""Training sparse autoencoders, several at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam

from headcodes.codes.sae import SparseAutoencoder, TrainConfig
from headcodes.errors import HeadcodesError
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float


_PLATEAU_WINDOW = 25
# Epochs that a CUDA device runs before and with the first replay of a captured one.
_FIRST_REPLAY = 4
# Below this share of active latents, products over active pairs alone beat dense ones (docs/performance.md).
_SPARSE_BELOW = 0.1


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained autoencoder and the loss before each step, fp32 ``[n_epochs run]`` on the CPU."""

    sae: SparseAutoencoder
    losses: Float[Tensor, " n_epochs"]


def train(
    x: Float[Tensor, "n_rows d_in"], config: TrainConfig | None = None, *, generator: torch.Generator
) -> TrainResult:
    """Train one autoencoder on the rows of ``x``, on the device of ``x``.

    ``generator`` (CPU) is drawn from in the published order: ``W_enc`` (Gaussian, ``[d_sae, d_in]``), ``b_enc``
    (uniform within 1/sqrt(d_in)), ``W_dec`` (Gaussian, ``[d_in, d_sae]``). A caller that permutes prompts draws
    before. Same generator state, machine and number of threads: same bits.

    Raises:
        HeadcodesError: ``x`` is not a non-empty, finite matrix.
    """
    return train_many([x], config, generators=[generator])[0]


def train_many(
    xs: Sequence[Float[Tensor, "n_rows d_in"]],
    config: TrainConfig | None = None,
    *,
    generators: Sequence[torch.Generator],
) -> list[TrainResult]:
    """Train one autoencoder per generator, the i-th on ``xs[i]``; all matrices of one shape and device.

    On a CPU one problem already keeps the cores busy, so they run one after the other, and each gives the bits that
    ``train`` gives. On a GPU they are one batched problem, whose products may round otherwise than those of a single
    one: there losses and weights agree to rounding. Each stops early by its own loss either way.

    Raises:
        HeadcodesError: a matrix is empty or holds NaN or infinity, shapes differ, or the numbers of matrices and
            generators do.
    """
    config = config or TrainConfig()
    if len(xs) != len(generators) or not xs:
        raise HeadcodesError(
            "there must be one matrix of rows per generator",
            f"{len(xs)} and {len(generators)}",
            "Repeat a matrix that several seeds share.",
        )
    for x in xs:
        if x.ndim != 2 or x.shape != xs[0].shape or not x.numel():
            raise HeadcodesError(
                "training rows must be finite matrices [n_rows, d_in] of one shape",
                f"shape {tuple(x.shape)}",
                "Check the activations that the rows came from.",
            )
    if not torch.stack([x.isfinite().all() for x in xs]).all():
        raise HeadcodesError(
            "training rows must be finite matrices [n_rows, d_in] of one shape",
            "NaN or infinity",
            "Check the activations that the rows came from.",
        )
    groups = [range(len(xs))] if xs[0].is_cuda else [range(i, i + 1) for i in range(len(xs))]
    results: list[TrainResult] = []
    with progress("training", total=config.n_epochs * len(groups)) as advance:
        for group in groups:
            x = torch.stack([xs[i].detach().float() for i in group])
            weights, b_enc = zip(*(_initial(x.shape[-1], config.d_sae, generators[i]) for i in group), strict=True)
            problem = _Problem(x, torch.stack(weights).to(x.device), torch.stack(b_enc).to(x.device), config)
            results += problem.run(advance)
    return results


def _initial(d_in: int, d_sae: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw encoder directions over decoder atoms ``[2 d_sae, d_in]``, not yet normalised, and ``b_enc [d_sae]``."""
    encoder = torch.randn(d_sae, d_in, generator=generator)
    bound = 1 / math.sqrt(d_in)
    b_enc = torch.empty(d_sae).uniform_(-bound, bound, generator=generator)
    decoder = torch.randn(d_in, d_sae, generator=generator)
    return torch.cat([encoder, decoder.T]), b_enc


class _Problem:
    """The state of S optimisations that share shapes.

    ``W [S, 2 d_sae, d_in]`` holds encoder directions over decoder atoms, so that one product with ``x`` serves both.
    """

    def __init__(self, x: Tensor, W: Tensor, b_enc: Tensor, config: TrainConfig) -> None:
        self.config = config
        self.n_rows, d_in = x.shape[-2:]
        self.W, self.b_enc, self.b_dec = W, b_enc, x.new_zeros(len(x), d_in)
        self.x = x
        self.x_low = x.to(config.dtype) if x.dtype == torch.float32 else x
        self.x_sum = x.sum(1)
        self.x_square = x.square().sum((1, 2), dtype=torch.float64).to(x.dtype)
        self.parameters = [self.W, self.b_enc, self.b_dec]
        self.grads, *self.moments = ([torch.zeros_like(p) for p in self.parameters] for _ in range(3))
        self.n_steps = [torch.zeros((), device=x.device) for _ in self.parameters]
        self.mse_scale = 2 / (self.n_rows * d_in)
        self.l1_scale = config.l1 / self.n_rows
        self.decoder_axis = -2 if config.decoder_norm == "rows" else -1
        self.active_share = 1.0
        # Large intermediates live here: fresh pages every epoch would cost more than the arithmetic on them.
        shape = (len(x), self.n_rows, 2 * config.d_sae)
        self.product, self.both = (torch.empty(shape, dtype=self.x_low.dtype, device=x.device) for _ in range(2))
        self.hidden = self.product if self.x_low is x else torch.empty_like(self.product, dtype=x.dtype)
        self.explained = torch.empty_like(self.product[..., : config.d_sae])
        self.is_active = torch.empty((*shape[:2], config.d_sae), dtype=torch.bool, device=x.device)
        self.spare = torch.empty_like(x[0] if not x.is_cuda else x[0, :0])

    def run(self, advance: Callable[[int], None]) -> list[TrainResult]:
        """Train; return the S results.

        A problem whose loss stands still is over with the weights of that epoch, as if it were alone, though it is
        worked on until the last one stands still too.
        """
        step = _Replayed(self.step, self.W.device) if self.W.is_cuda else self.step
        losses = torch.empty(self.config.n_epochs, len(self.W), device=self.W.device)
        results: dict[int, TrainResult] = {}
        n_run = 0
        while len(results) < len(self.W):
            losses[n_run] = step()
            n_run += 1
            if isinstance(step, _Replayed) and n_run == _FIRST_REPLAY:
                # A graph captured on another device or stream is empty, and its replays would train nothing.
                done = int(self.n_steps[0])
                if done != n_run:
                    raise HeadcodesError(
                        "a training step that was captured as a CUDA graph must run when it is replayed",
                        f"{done} steps done after {n_run} on {self.W.device}",
                        "Report it with `make gpu-check`; until then train on the CPU.",
                    )
            advance(1)
            over = range(len(self.W)) if n_run == self.config.n_epochs else []
            if self.config.plateau and n_run % _PLATEAU_WINDOW == 0 and n_run > _PLATEAU_WINDOW:
                before, now = losses[n_run - 1 - _PLATEAU_WINDOW], losses[n_run - 1]
                over = over or (now > (1 - self.config.plateau) * before).nonzero().flatten().tolist()
            for s in over:
                if s not in results:
                    results[s] = TrainResult(self.autoencoder(s), losses[:n_run, s].cpu().clone())
        return [results[s] for s in range(len(self.W))]

    def step(self) -> Tensor:
        """Run one epoch; return the loss before it, ``[S]``."""
        self.normalise(self.W)
        sparse = len(self.W) == 1 and self.active_share < _SPARSE_BELOW
        loss = self.sparse_gradients() if sparse else self.gradients()
        self.project()
        # The function behind torch.optim.Adam: the class imports torch's compiler, which takes longer than a small
        # training.
        adam(
            self.parameters,
            self.grads,
            self.moments[0],
            self.moments[1],
            [],
            self.n_steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.config.lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        return loss

    def normalise(self, W: Tensor) -> None:
        """Give every encoder direction, and every decoder row or atom, of ``W [..., 2 d_sae, d_in]`` norm 1."""
        encoder, decoder = W.chunk(2, -2)
        encoder.div_(encoder.norm(dim=-1, keepdim=True))
        decoder.div_(decoder.norm(dim=self.decoder_axis, keepdim=True))

    def project(self) -> None:
        """Take out of the weights' gradients what lies along each normalised row or atom."""
        axes = (-1, self.decoder_axis)
        for weight, grad, axis in zip(self.W.chunk(2, 1), self.grads[0].chunk(2, 1), axes, strict=True):
            grad.addcmul_((weight * grad).sum(axis, keepdim=True), weight, value=-1)

    def gradients(self) -> Tensor:
        """Fill ``grads`` with the loss's derivatives and return the loss ``[S]``; every product dense.

        ``R`` (see the module) enters as ``R W_dec^T`` and ``latents^T R`` only, and both split into a product with
        ``x`` and one with a ``d_sae x d_sae`` matrix.
        """
        d_sae = self.config.d_sae
        decoder = self.W[:, d_sae:]
        low = self.x_low.dtype
        offset = (self.W @ self.b_dec[:, :, None]).mT  # what b_dec takes off x W^T
        offset[..., :d_sae] -= self.b_enc[:, None]
        torch.matmul(self.x_low, self.W.to(low).mT, out=self.product)
        hidden = torch.sub(self.product, offset, out=self.hidden)
        latents, active = hidden[..., :d_sae].relu_(), hidden[..., d_sae:]
        torch.gt(latents, 0, out=self.is_active)
        if not self.W.is_cuda:
            self.active_share = self.is_active.count_nonzero().item() / self.is_active.numel()
        latents_low = self.both[..., d_sae:].copy_(latents)
        gram = decoder @ decoder.mT
        # active: (x - b_dec) W_dec^T, then -R W_dec^T, then the loss's derivative by pre-activations.
        active -= torch.matmul(latents_low, gram.to(low), out=self.explained)
        active.mul_(-self.mse_scale).add_(self.l1_scale).mul_(self.is_active)
        self.both[..., :d_sae].copy_(active)
        sums = torch.cat([active.sum(1), latents.sum(1)], -1)
        products = (self.both.mT @ self.x_low).to(self.W.dtype)
        products -= sums[:, :, None] * self.b_dec[:, None]  # as if with x - b_dec
        overlap = (latents_low.mT @ latents_low).to(self.W.dtype) @ decoder
        correlation = products[:, d_sae:]
        g_W = self.grads[0]
        g_W[:, :d_sae] = products[:, :d_sae]
        torch.sub(overlap, correlation, out=g_W[:, d_sae:]).mul_(self.mse_scale)
        square = self.centred_square() + ((overlap - 2 * correlation) * decoder).sum((1, 2))
        return self.bias_gradients(sums, square)

    def sparse_gradients(self) -> Tensor:
        """Do what ``gradients`` does, for S = 1, at a cost that falls with the number of active latents.

        Only the product that finds the active latents stays dense. Everything else sums over active (row, latent)
        pairs, in full precision: ``embedding_bag`` is a sparse-dense product, ``sampled_addmm`` a dense-dense product
        at given places.
        """
        d_sae = self.config.d_sae
        encoder, decoder = self.W[0].chunk(2)
        b_dec = self.b_dec[0]
        offset = encoder @ b_dec - self.b_enc[0]
        product = self.product.view(-1)[: self.n_rows * d_sae].view(self.n_rows, d_sae)
        torch.mm(self.x_low[0], encoder.to(product.dtype).T, out=product)
        rows, latent = torch.gt(product, offset, out=self.is_active[0]).nonzero().T.contiguous()
        self.active_share = len(rows) / product.numel()
        alive, row, counts = torch.unique_consecutive(rows, return_inverse=True, return_counts=True)
        x = torch.index_select(self.x[0], 0, alive, out=self.spare[: len(alive)])
        ends = torch.zeros(len(alive) + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=ends[1:])
        places = _csr(ends, latent, (len(alive), d_sae), x.dtype)
        latents = (torch.sparse.sampled_addmm(places, x, encoder.T).values() - offset[latent]).relu_()
        residual = F.embedding_bag(latent, decoder, ends[:-1], mode="sum", per_sample_weights=latents)
        reconstruction_square = residual.view(-1).dot(residual.view(-1))
        residual.sub_(x).add_(b_dec)
        along = torch.sparse.sampled_addmm(places, residual, decoder.T).values()
        active = torch.where(latents > 0, self.mse_scale * along + self.l1_scale, 0)

        order = latent.argsort(stable=True)
        row, by_latent = row[order], latent.bincount(minlength=d_sae)
        starts = by_latent.cumsum(0) - by_latent
        g_W = self.grads[0][0]
        g_W[:d_sae] = F.embedding_bag(row, x, starts, mode="sum", per_sample_weights=active[order])
        sums = x.new_zeros(2, d_sae)
        sums[0].index_add_(0, latent, active)
        sums[1].index_add_(0, latent, latents)
        g_W[:d_sae].addr_(sums[0], b_dec, alpha=-1)
        g_W[d_sae:] = F.embedding_bag(row, residual, starts, mode="sum", per_sample_weights=latents[order])
        g_W[d_sae:] *= self.mse_scale
        square = self.centred_square() + 2 * latents.dot(along) - reconstruction_square
        return self.bias_gradients(sums.view(1, -1), square)

    def centred_square(self) -> Tensor:
        """Return the sum of squares of ``x - b_dec``, ``[S]``."""
        b_dec = self.b_dec
        return self.x_square + ((self.n_rows * b_dec - 2 * self.x_sum) * b_dec).sum(-1)

    def bias_gradients(self, sums: Tensor, square: Tensor) -> Tensor:
        """Fill the biases' gradients; return the loss ``[S]``.

        ``sums [S, 2 d_sae]``: over rows, of the derivatives by pre-activations and of the latents; ``square [S]``: sum
        of squares of ``R``.
        """
        active, latents = sums.chunk(2, -1)
        encoder, decoder = self.W.chunk(2, 1)
        self.grads[1].copy_(active)
        reconstruction = (latents[:, None] @ decoder).squeeze(1)
        through_encoder = (active[:, None] @ encoder).squeeze(1)
        residual = reconstruction + self.n_rows * self.b_dec - self.x_sum
        torch.sub(self.mse_scale * residual, through_encoder, out=self.grads[2])
        return self.mse_scale / 2 * square + self.l1_scale * latents.sum(-1)

    def autoencoder(self, s: int) -> SparseAutoencoder:
        """Return the s-th autoencoder, normalised, in tensors of its own."""
        W = self.W[s].clone()
        self.normalise(W)
        encoder, decoder = W.chunk(2)
        return SparseAutoencoder(encoder.T.contiguous(), self.b_enc[s].clone(), decoder.clone(), self.b_dec[s].clone())


def _csr(ends: Tensor, columns: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return a sparse matrix of zeros with places for values."""
    with warnings.catch_warnings():
        # Once a process, PyTorch announces that CSR is a beta feature: nothing that a user of ours could act on.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)
        values = torch.zeros(len(columns), dtype=dtype)
        return torch.sparse_csr_tensor(ends, columns, values, shape, check_invariants=False)


class _Replayed:
    """A CUDA step: called eagerly three times on a stream of its own, then captured once and replayed as a graph.

    Stream and capture are of the device that the weights lie on, which need not be the current one.
    """

    def __init__(self, step: Callable[[], Tensor], device: torch.device) -> None:
        self.step, self.device = step, device
        self.n_eager = 3
        self.stream = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> Tensor:
        with torch.cuda.device(self.device):
            if self.n_eager:
                self.n_eager -= 1
                self.stream.wait_stream(torch.cuda.current_stream(self.device))
                with torch.cuda.stream(self.stream):
                    loss = self.step()
                torch.cuda.current_stream(self.device).wait_stream(self.stream)
                return loss
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph, stream=self.stream):
                    self.loss = self.step()
            self.graph.replay()
        return self.loss
