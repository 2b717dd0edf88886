from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headcodes.codes.sae import SparseAutoencoder, TrainConfig
from headcodes.codes.train import _initial, _Problem, train, train_many
from headcodes.errors import HeadcodesError

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
from peers import published


def head_outputs(n_rows: int = 240, d_in: int = 48, seed: int = 0, std: float = 0.5) -> torch.Tensor:
    """Rows like heads' outputs: every head has an offset and few directions of its own."""
    g = torch.Generator().manual_seed(seed)
    n_heads = 12
    offsets = torch.randn(n_heads, d_in, generator=g)
    directions = torch.randn(n_heads, 3, d_in, generator=g)
    weights = torch.randn(n_rows // n_heads, n_heads, 3, generator=g)
    x = offsets + torch.einsum("nhk,hkd->nhd", weights, directions)
    x = x.reshape(-1, d_in)
    return x * (std / x.std())


def autoencoder(seed: int = 0, d_in: int = 6, d_sae: int = 5) -> SparseAutoencoder:
    g = torch.Generator().manual_seed(seed)
    shapes = ((d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,))
    return SparseAutoencoder(*(torch.randn(s, generator=g) for s in shapes))


DENSE = {"d_sae": 40, "n_epochs": 120}
DENSE_TO_SPARSE = {"d_sae": 40, "l1": 0.1, "lr": 5e-3, "n_epochs": 120}


@pytest.mark.parametrize(("std", "options"), [(0.5, DENSE), (2.0, DENSE), (0.5, DENSE_TO_SPARSE)])
def test_losses_and_weights_follow_the_published_loop(std, options):
    rows = head_outputs(std=std)
    peer, peer_losses = published.train(rows, torch.Generator().manual_seed(3), **options)
    got = train(rows, TrainConfig(**options), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(got.losses, torch.tensor(peer_losses), rtol=2e-5, atol=0)
    torch.testing.assert_close(got.sae.W_enc, peer.W_enc.T, rtol=0, atol=1e-3)
    torch.testing.assert_close(got.sae.W_dec, peer.W_dec.T, rtol=0, atol=1e-3)


def test_loss_falls_and_latents_become_sparse():
    rows = head_outputs(std=2.0)
    got = train(rows, TrainConfig(d_sae=40, l1=0.1, n_epochs=300), generator=torch.Generator().manual_seed(0))
    latents = ((rows - got.sae.b_dec) @ got.sae.W_enc + got.sae.b_enc).relu()
    assert got.losses[-1] < 0.8 * got.losses[0]
    assert 0 < (latents > 0).float().mean() < 0.3


class WrittenDown(torch.autograd.Function):
    """The loss as the package computes it, with the gradients that it writes down."""

    @staticmethod
    def forward(ctx, x, W, b_enc, b_dec, way):
        problem = _Problem(x, W.clone(), b_enc.clone(), TrainConfig(d_sae=W.shape[1] // 2, l1=0.3))
        problem.b_dec.copy_(b_dec)
        loss = getattr(problem, way)()
        ctx.grads = problem.grads
        return loss.sum()

    @staticmethod
    def backward(ctx, above):
        g_W, g_b_enc, g_b_dec = (above * g for g in ctx.grads)
        return None, g_W, g_b_enc, g_b_dec, None


WAYS = ["gradients", "sparse_gradients"]


@pytest.mark.parametrize(("way", "n_problem"), [("gradients", 2), ("gradients", 1), ("sparse_gradients", 1)])
def test_gradients_against_finite_differences(way, n_problem):
    g = torch.Generator().manual_seed(0)
    shapes = ((n_problem, 9, 5), (n_problem, 8, 5), (n_problem, 4), (n_problem, 5))
    x, W, b_enc, b_dec = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    for t in (W, b_enc, b_dec):
        t.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda *p: WrittenDown.apply(x, *p, way), (W, b_enc, b_dec))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shift", [0.0, -8.0, -1e3])
def test_loss_and_gradients_against_autograd(way, shift):
    """Half, few (whole rows and latents dead) and none of the latents active."""
    g = torch.Generator().manual_seed(1)
    shapes = ((1, 50, 16), (1, 20, 16), (1, 10), (1, 16))
    x, W, b_enc, b_dec = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    b_enc += shift
    problem = _Problem(x, W, b_enc, TrainConfig(d_sae=10, l1=0.3))
    problem.b_dec.copy_(b_dec)
    loss = getattr(problem, way)()
    parameters = [t[0].clone().requires_grad_(True) for t in (W, b_enc, b_dec)]
    weights, enc, dec = parameters
    latents = torch.relu((x[0] - dec) @ weights[:10].T + enc)
    plain = torch.nn.functional.mse_loss(latents @ weights[10:] + dec, x[0]) + 0.3 * latents.sum(1).mean()
    plain.backward()
    torch.testing.assert_close(loss[0], plain.detach())
    for got, parameter in zip(problem.grads, parameters, strict=True):
        torch.testing.assert_close(got[0], parameter.grad)
    assert problem.active_share == (latents > 0).double().mean().item()
    assert (0.3 < problem.active_share < 0.7, 0 < problem.active_share < 0.1, problem.active_share == 0)[
        (0.0, -8.0, -1e3).index(shift)
    ]


def test_few_active_latents_take_the_sparse_way(monkeypatch):
    calls = []
    sparse = _Problem.sparse_gradients
    monkeypatch.setattr(_Problem, "sparse_gradients", lambda self: calls.append(0) or sparse(self))
    train(head_outputs(), TrainConfig(**DENSE_TO_SPARSE), generator=torch.Generator().manual_seed(3))
    assert 30 < len(calls) < 110


def test_decoder_norms():
    rows = head_outputs()
    for norm, axis in (("rows", 0), ("atoms", 1)):
        config = TrainConfig(d_sae=20, n_epochs=30, decoder_norm=norm)
        sae = train(rows, config, generator=torch.Generator().manual_seed(0)).sae
        lengths = sae.W_dec.norm(dim=axis)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))
        torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.ones(20))


def test_projection_leaves_nothing_along_the_weights():
    for norm, axis in (("rows", -2), ("atoms", -1)):
        g = torch.Generator().manual_seed(0)
        config = TrainConfig(d_sae=7, decoder_norm=norm)
        problem = _Problem(
            torch.randn(1, 30, 9, generator=g), torch.randn(1, 14, 9, generator=g), torch.zeros(1, 7), config
        )
        problem.normalise(problem.W)
        problem.gradients()
        assert problem.grads[0].abs().max() > 1e-3
        problem.project()
        (encoder, decoder), (g_e, g_d) = problem.W.chunk(2, 1), problem.grads[0].chunk(2, 1)
        assert (encoder * g_e).sum(-1).abs().max() < 1e-6
        assert (decoder * g_d).sum(axis).abs().max() < 1e-6


def test_same_seed_same_bits_and_other_seed_others():
    rows = head_outputs()
    config = TrainConfig(d_sae=30, n_epochs=40)
    a, b, c = (train(rows, config, generator=torch.Generator().manual_seed(s)) for s in (4, 4, 5))
    assert torch.equal(a.sae.W_enc, b.sae.W_enc)
    assert torch.equal(a.losses, b.losses)
    assert not torch.equal(a.sae.W_enc, c.sae.W_enc)


def test_generator_goes_on_where_the_caller_left_it():
    rows = head_outputs()
    generator = torch.Generator().manual_seed(2)
    torch.randperm(20, generator=generator)
    got = train(rows, TrainConfig(d_sae=10, n_epochs=1), generator=generator)
    again = torch.Generator().manual_seed(2)
    torch.randperm(20, generator=again)
    _, losses = published.train(rows, again, d_sae=10, n_epochs=1)
    assert got.losses[0].item() == pytest.approx(losses[0], rel=1e-5)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=again))


def test_bf16_products_end_at_the_same_loss():
    rows = head_outputs(std=4.0)
    fp32, bf16 = (
        train(rows, TrainConfig(d_sae=40, n_epochs=200, dtype=dtype), generator=torch.Generator().manual_seed(0))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert bf16.sae.W_enc.dtype == torch.float32
    assert not torch.equal(fp32.losses, bf16.losses)
    assert bf16.losses[-1].item() == pytest.approx(fp32.losses[-1].item(), rel=0.01)


def test_many_is_each_alone():
    xs = [head_outputs(seed=s) for s in range(3)]
    config = TrainConfig(d_sae=20, n_epochs=30)
    together = train_many(xs, config, generators=[torch.Generator().manual_seed(s) for s in range(3)])
    for s, (x, got) in enumerate(zip(xs, together, strict=True)):
        alone = train(x, config, generator=torch.Generator().manual_seed(s))
        assert torch.equal(got.losses, alone.losses)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            assert torch.equal(getattr(got.sae, name), getattr(alone.sae, name))


def test_plateau_stops_early_and_only_when_asked():
    rows = head_outputs(n_rows=60, d_in=8)
    long = TrainConfig(d_sae=4, n_epochs=1500)
    stopped = TrainConfig(d_sae=4, n_epochs=1500, plateau=1e-2)
    full = train(rows, long, generator=torch.Generator().manual_seed(0)).losses
    early = train(rows, stopped, generator=torch.Generator().manual_seed(0)).losses
    assert len(full) == 1500
    assert 50 <= len(early) < 1500
    assert torch.equal(full[: len(early)], early)
    assert early[-1] > (1 - 1e-2) * early[-26]


def test_save_and_load(tmp_path):
    sae = autoencoder()
    sae.save(tmp_path / "sae")
    back = SparseAutoencoder.load(tmp_path / "sae")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(back, name), getattr(sae, name))
    assert sorted(p.name for p in (tmp_path / "sae").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    # What SAELens's SAE.load_from_disk dispatches on and passes to StandardSAEConfig.
    assert config["architecture"] == "standard"
    assert (config["d_in"], config["d_sae"], config["dtype"]) == (6, 5, "float32")
    assert config["apply_b_dec_to_input"] is True
    assert config["normalize_activations"] == "none"
    assert isinstance(config["metadata"], dict)
    weights = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    assert {name: tuple(w.shape) for name, w in weights.items()} == {
        "W_enc": (6, 5),
        "b_enc": (5,),
        "W_dec": (5, 6),
        "b_dec": (6,),
    }


def damage(folder: Path, how: str) -> None:
    weights, config = folder / "sae_weights.safetensors", folder / "cfg.json"
    if how == "missing":
        weights.unlink()
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif how == "not json":
        config.write_text("{")
    elif how == "not a mapping":
        config.write_text("[1]")
    elif how == "shape":
        save_file({**load_file(weights), "b_enc": torch.zeros(4)}, weights)
    elif how == "no b_dec":
        save_file({k: v for k, v in load_file(weights).items() if k != "b_dec"}, weights)
    else:
        key, value = how.split("=")
        config.write_text(json.dumps({**json.loads(config.read_text()), key: json.loads(value)}))


@pytest.mark.parametrize(
    "how",
    [
        "missing",
        "cut",
        "not json",
        "not a mapping",
        "shape",
        "no b_dec",
        'architecture="jumprelu"',
        "apply_b_dec_to_input=false",
        'normalize_activations="layer_norm"',
        "d_in=7",
    ],
)
def test_load_refuses(tmp_path, how):
    autoencoder().save(tmp_path)
    damage(tmp_path, how)
    with pytest.raises(HeadcodesError):
        SparseAutoencoder.load(tmp_path)


@pytest.mark.parametrize(
    "options", [{"d_sae": 0}, {"n_epochs": 0}, {"decoder_norm": "columns"}, {"dtype": torch.float16}]
)
def test_config_refuses(options):
    with pytest.raises(HeadcodesError, match=next(iter(options))):
        TrainConfig(**options)


@pytest.mark.parametrize(
    "x", [torch.zeros(0, 4), torch.zeros(4), torch.tensor([[1.0, float("nan")]]), torch.zeros(2, 3, 4)]
)
def test_train_refuses(x):
    with pytest.raises(HeadcodesError):
        train(x, generator=torch.Generator())


def test_train_many_refuses_what_does_not_match():
    x = torch.ones(3, 4)
    with pytest.raises(HeadcodesError):
        train_many([x], generators=[])
    with pytest.raises(HeadcodesError):
        train_many([x, x[:2]], generators=[torch.Generator(), torch.Generator()])


def test_one_batch_is_each_alone_and_each_stops_by_its_own_loss():
    """What a GPU does with several seeds, done here: rounding apart, nobody waits for the last one."""
    xs = [head_outputs(n_rows=60, d_in=8, seed=s, std=std) for s, std in enumerate((0.5, 2.0, 8.0))]
    config = TrainConfig(d_sae=4, n_epochs=1500, plateau=1e-2)
    weights, b_enc = zip(*(_initial(8, 4, torch.Generator().manual_seed(s)) for s in range(3)), strict=True)
    together = _Problem(torch.stack(xs), torch.stack(weights), torch.stack(b_enc), config).run(lambda _: None)
    assert len({len(got.losses) for got in together}) > 1
    for s, (x, got) in enumerate(zip(xs, together, strict=True)):
        alone = train(x, config, generator=torch.Generator().manual_seed(s))
        torch.testing.assert_close(got.losses, alone.losses, rtol=1e-4, atol=0)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            torch.testing.assert_close(getattr(got.sae, name), getattr(alone.sae, name), rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_many_on_a_gpu_is_each_alone():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    xs = [head_outputs(seed=s).cuda() for s in range(3)]
    config = TrainConfig(d_sae=20, n_epochs=200, plateau=1e-2)
    together = train_many(xs, config, generators=[torch.Generator().manual_seed(s) for s in range(3)])
    for s, (x, got) in enumerate(zip(xs, together, strict=True)):
        alone = train(x, config, generator=torch.Generator().manual_seed(s))
        torch.testing.assert_close(got.losses, alone.losses, rtol=1e-4, atol=0)
        torch.testing.assert_close(got.sae.W_dec, alone.sae.W_dec, rtol=0, atol=1e-3)
