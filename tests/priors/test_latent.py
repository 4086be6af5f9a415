"""Latent priors: the autoencoder, units, the decoder's derivative, files, training in two stages."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from invdiff import Measurement
from invdiff.algorithms import DAPS, DPS
from invdiff.algorithms.kernels import HMC
from invdiff.cli import app
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity, RealAsComplex
from invdiff.priors import EDMDenoiser, NetworkPrior, PriorInfo, load_prior, save_prior, shipped_priors
from invdiff.priors.autoencoder import Autoencoder, autoencoder_loss, block_basis
from invdiff.priors.configuration import TrainConfig
from invdiff.priors.latent import Decoder, LatentPrior, of_images
from invdiff.priors.networks import UNet
from invdiff.priors.train import train

NETWORK = {"channels": 2, "widths": (8, 8), "n_blocks": 1, "unshuffle": 1}
IMAGE, LATENT = (1, 16, 16), (2, 4, 4)
INFO = PriorInfo(name="tiny", value_range=(0.0, 3.0))


def scrambled(module: torch.nn.Module) -> torch.nn.Module:
    """All parameters random, those that start at zero included."""
    g = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.data.add_(0.05 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return module


def tiny_autoencoder(latent_channels: int = 2) -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoencoder(latent_channels=latent_channels, widths=(8, 8), n_blocks=1)


def tiny(dtype: torch.dtype = torch.float64) -> LatentPrior:
    autoencoder = tiny_autoencoder()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(**NETWORK)
    autoencoder.calibrate([images(8)])
    autoencoder, net = scrambled(autoencoder).to(dtype), scrambled(net).to(dtype)
    denoiser = NetworkPrior(EDMDenoiser(net), LATENT, sigma_min=0.01, sigma_max=80, info=INFO)
    return LatentPrior.from_autoencoder(autoencoder, denoiser)


def images(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return 0.5 * torch.nn.functional.interpolate(x, size=IMAGE[1:], mode="bilinear")


def measured(prior: LatentPrior, image_scale: float = 2.0) -> Measurement:
    x = torch.rand(IMAGE, generator=torch.Generator().manual_seed(2), dtype=prior.dtype)
    A = 0.5 * Identity(IMAGE).to(dtype=prior.dtype)
    return Measurement.simulate(x, A, GaussianNoise(0.1), seed=0, image_scale=image_scale)


class TestAutoencoder:
    def test_untrained_it_is_the_orthonormal_projection_on_low_block_frequencies(self) -> None:
        for channels, factor in ((1, 4), (2, 2)):
            basis = block_basis(channels, factor)
            torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), rtol=0, atol=1e-6)
        x, model = images(3), Autoencoder(latent_channels=3)
        once = model(x)
        torch.testing.assert_close(model(once), once, rtol=0, atol=1e-5)
        constant = torch.full((1, *IMAGE), 0.7)
        torch.testing.assert_close(model(constant), constant, rtol=0, atol=1e-5)
        assert bool(model.encode(x).square().sum() < x.square().sum())

    def test_default_size(self) -> None:
        model = Autoencoder()
        assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 1e6
        assert model.latent_shape((1, 128, 128)) == (4, 32, 32)
        with pytest.raises(ValueError, match="divisible by 4, got"):
            model.latent_shape((1, 126, 128))
        with pytest.raises(ValueError, match=r"latent_channels must lie in 1 \.\. 16"):
            Autoencoder(latent_channels=17)

    def test_calibration_sets_the_latents_and_keeps_the_images(self) -> None:
        model = scrambled(tiny_autoencoder(3))
        x = images(16) + 0.3
        before = model(x)
        model.calibrate([x[:8], x[8:]])
        z = model.encode(x)
        torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
        torch.testing.assert_close(z.std((0, 2, 3)), torch.full((3,), 0.5), rtol=1e-3, atol=0)
        torch.testing.assert_close(model(x), before, rtol=0, atol=1e-4)

    def test_scaling_the_latents_up_does_not_escape_the_noise(self) -> None:
        model, x = scrambled(tiny_autoencoder()), images(4)
        noise = torch.randn(4, *LATENT, generator=torch.Generator().manual_seed(0))
        a = autoencoder_loss(model, x, noise, 0.1, 0.1)
        model.scale /= 10
        torch.testing.assert_close(autoencoder_loss(model, x, noise, 0.1, 0.1), a)
        assert bool(a > autoencoder_loss(model, x, noise, 0.0, 0.1))


class TestPrior:
    def test_shapes_and_units(self) -> None:
        prior = tiny()
        assert (prior.shape, prior.image_shape) == (LATENT, IMAGE)
        x = images(3, torch.float64)
        z = prior.encode(x)
        assert tuple(z.shape) == (3, *LATENT)
        assert tuple(prior(z, 0.5).shape) == (3, *LATENT)
        m = measured(prior)
        # relative value 0 is model value -1, 3 is +1; image_scale 2
        torch.testing.assert_close(prior.to_image(z, m), 2 * 1.5 * (prior.decode(z) + 1))
        torch.testing.assert_close(prior.from_image(2 * 1.5 * (x + 1), m), z)
        torch.testing.assert_close(prior.from_image(2 * 1.5 * (x[0] + 1), m), z[0])
        assert "image_shape=(1, 16, 16)" in repr(prior)

    def test_the_measurement_is_that_of_the_decoded_image(self) -> None:
        prior = tiny()
        m = measured(prior)
        inner = prior.in_model_units(m)
        z = prior.encode(images(3, torch.float64))
        assert inner.linear is None
        assert inner.A.in_shape == LATENT
        torch.testing.assert_close(inner.nll(z), m.nll(prior.to_image(z, m)))
        torch.testing.assert_close(of_images(inner).nll(prior.decode(z)), inner.nll(z))
        assert of_images(inner).linear is not None
        with pytest.raises(TypeError, match="Expected a measurement of latents"):
            of_images(m)

    def test_vjp_of_the_decoder_is_its_directional_derivative(self) -> None:
        prior = tiny()
        A = Decoder(prior.decode, LATENT, IMAGE, dtype=torch.float64)
        z, dz = prior.encode(images(2, torch.float64)).unbind()
        v = torch.randn(IMAGE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        h = 1e-5
        expected = ((A(z + h * dz) - A(z - h * dz)) / (2 * h) * v).sum()
        with torch.no_grad():
            torch.testing.assert_close((A.vjp(z, v) * dz).sum(), expected, rtol=1e-6, atol=0)
        grad = prior.in_model_units(measured(prior)).nll_grad(z[None])
        leaf = z[None].clone().requires_grad_(True)
        (auto,) = torch.autograd.grad(prior.in_model_units(measured(prior)).nll(leaf).sum(), leaf)
        torch.testing.assert_close(grad, auto)

    @pytest.mark.parametrize(
        ("measurement", "message"),
        [
            (lambda m: Measurement(torch.zeros(1, 8, 8).double(), Identity((1, 8, 8)).to(dtype=torch.float64),
                                   m.noise), r"makes images of shape \(1, 16, 16\), the operator takes \(1, 8, 8\)"),
            (lambda m: Measurement(torch.zeros(LATENT).double(), Identity(LATENT).to(dtype=torch.float64),
                                   m.noise), "differ in image channels"),
            (lambda m: m.to(dtype=torch.float32), r"The prior is torch.float64 on cpu, the measurement torch.float32"),
        ],
    )  # fmt: skip
    def test_measurements_that_do_not_fit_are_refused(self, measurement, message: str) -> None:
        prior = tiny()
        with pytest.raises(ValueError, match=message):
            prior.in_model_units(measurement(measured(prior)))

    def test_complex_images_are_refused(self) -> None:
        A = RealAsComplex(IMAGE).to(dtype=torch.float64)
        m = Measurement(torch.zeros(IMAGE).double(), A.H, GaussianNoise(1.0))
        with pytest.raises(ValueError, match="takes complex images"):
            tiny().in_model_units(m)

    def test_wrong_tensors_and_parts_are_refused(self) -> None:
        prior = tiny()
        with pytest.raises(ValueError, match=r"expected \(batch, 2, 4, 4\), got \(3, 1, 16, 16\)"):
            prior.decode(images(3, torch.float64))
        with pytest.raises(ValueError, match=r"expected \(batch, 1, 16, 16\), got \(3, 1, 16, 16\) in torch.float32"):
            prior.encode(images(3))
        wrong = LatentPrior(lambda x: x, prior.decoder, prior.denoiser, image_shape=IMAGE)
        with pytest.raises(ValueError, match="was to map"):
            wrong.encode(images(3, torch.float64))
        with pytest.raises(ValueError, match="the autoencoder makes"):
            LatentPrior.from_autoencoder(Autoencoder(), prior.denoiser)

    def test_algorithms_run_on_latents(self) -> None:
        prior = tiny(torch.float32)
        m = measured(prior)
        for algorithm in (
            DPS(n_steps=4, clip=False),
            DAPS(n_anneal=3, kernel=HMC(n_steps=2, step_size=1e-5)),
        ):
            posterior = algorithm(prior, m, n_samples=2)
            assert tuple(posterior.samples.shape) == (2, *IMAGE)
            assert torch.isfinite(posterior.samples).all()
        warm = DAPS(n_anneal=3, kernel=HMC(n_steps=2, step_size=1e-5))(prior, m, start=m.reference)
        assert tuple(warm.samples.shape) == (1, *IMAGE)


class TestFile:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        prior = tiny(torch.float32)
        autoencoder, denoiser = prior.modules
        save_prior(
            tmp_path / "p.safetensors", denoiser, NETWORK, shape=LATENT, sigma_min=0.01, sigma_max=80, info=INFO,
            autoencoder=autoencoder,
        )  # fmt: skip
        return tmp_path / "p.safetensors"

    def test_one_file_holds_both_networks(self, path: Path) -> None:
        prior, saved = load_prior(path), tiny(torch.float32)
        assert isinstance(prior, LatentPrior)
        assert (prior.shape, prior.image_shape, prior.info.value_range) == (LATENT, IMAGE, (0.0, 3.0))
        assert len(prior.info.sha256) == 64
        assert not any(p.requires_grad for module in prior.modules for p in module.parameters())
        z = saved.encode(images(2))
        torch.testing.assert_close(prior.encode(images(2)), z, rtol=0, atol=2e-2)
        torch.testing.assert_close(prior.decode(z), saved.decode(z), rtol=0, atol=1e-2)
        torch.testing.assert_close(prior(z, 0.3), saved(z, 0.3), rtol=0, atol=1e-2)
        assert prior.to(device="cpu").image_shape == IMAGE

    def test_missing_weights_are_named(self, path: Path) -> None:
        from safetensors import safe_open

        weights = load_file(path)
        with safe_open(path, "pt") as f:
            metadata = f.metadata()
        del weights["autoencoder.shift"]
        save_file(weights, path, metadata=metadata)
        with pytest.raises(ValueError, match=r"missing \['autoencoder.shift'\]"):
            load_prior(path)

    def test_the_command_shows_it(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        result = CliRunner().invoke(app, ["prior", "info", str(path)])
        assert result.exit_code == 0, result.output
        assert "1 x 16 x 16" in result.output
        assert "2 x 4 x 4" in result.output
        assert "latent units" in result.output


TOML = """
name = "tiny-latent"
modality = "mri"
train = ["a.nii.gz"]
validation = ["b.nii.gz"]
n_steps = 3
batch_size = 2
[augmentation]
size = 16
[autoencoder]
latent_channels = 2
widths = [8, 8]
n_blocks = 1
n_steps = 3
batch_size = 2
[network]
channels = 2
widths = [8, 8]
unshuffle = 1
"""


class TestTraining:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        rng = np.random.default_rng(0)
        for name in ("a", "b"):
            volume = np.zeros((24, 28, 5), np.int16)
            volume[4:20, 4:24] = rng.integers(200, 1000, (16, 20, 5))
            nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / f"{name}.nii.gz")
        (tmp_path / "tiny.toml").write_text(TOML)
        return tmp_path

    def test_a_run_killed_in_each_stage_ends_where_an_uninterrupted_one_does(self, data: Path) -> None:
        config = TrainConfig.read(data / "tiny.toml")
        steps: list[tuple[int, int]] = []
        whole = train(config, data / "whole", data=data, device="cpu", callback=lambda k, n, _: steps.append((k, n)))
        assert steps == [(k, 6) for k in range(1, 7)]

        class Killed(Exception):
            pass

        for at in (2, 5):

            def kill(step: int, n_steps: int, loss: float, at: int = at) -> None:
                if step == at:
                    raise Killed

            with pytest.raises(Killed):
                train(config, data / "parts", data=data, device="cpu", callback=kill)
        assert torch.load(data / "parts" / "autoencoder.pt", weights_only=True)["step"] == 3
        assert torch.load(data / "parts" / "checkpoint.pt", weights_only=True)["step"] == 2
        parts = train(config, data / "parts", device="cpu")
        assert whole is not None
        assert parts is not None
        a, b = load_file(whole), load_file(parts)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
        details = load_prior(whole).info.details
        assert details["autoencoder_steps"] == 3
        assert {"sigma", "noisy", "linear", "prior"} == set(details["denoising_psnr"][0])
        card = (data / "whole" / "tiny-latent.md").read_text()
        assert "3 steps of 2 images after 3 of the autoencoder" in card
        assert "| sigma | noisy | linear | this prior |" in card

    def test_time_is_up_in_the_first_stage(self, data: Path) -> None:
        config = TrainConfig.read(data / "tiny.toml")
        assert train(config, data / "out", data=data, device="cpu", max_minutes=0) is None
        assert not (data / "out" / "checkpoint.pt").exists()
        assert train(config, data / "out", device="cpu") is not None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("[network]\nchannels = 2\n", "[network]\n"), r"expected \[network\] channels = 2, got 1"),
            (("n_blocks = 1", "n_block = 1"), r"\[autoencoder\]: no parameter 'n_block'"),
        ],
    )
    def test_wrong_tables_are_refused(self, data: Path, change: tuple[str, str], message: str) -> None:
        (data / "bad.toml").write_text(TOML.replace(*change))
        with pytest.raises(ValueError, match=message):
            TrainConfig.read(data / "bad.toml")


class TestShipped:
    def test_is_small_has_a_card_and_reproduces_a_disc(self) -> None:
        file = shipped_priors()["ct-128-latent"]
        assert file.stat().st_size < 6e6
        card = file.with_suffix(".md").read_text()
        for word in ("licence", "trained on", "held out", "| sigma | noisy | linear | this prior |"):
            assert word in card
        prior = load_prior("ct-128-latent")
        assert isinstance(prior, LatentPrior)
        assert (prior.shape, prior.image_shape) == ((4, 32, 32), (1, 128, 128))
        # an image it was not trained on
        y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
        x0 = torch.where(x**2 + y**2 < 0.5, 0.1, -1.0)[None, None]
        z = prior.encode(x0)
        assert float((prior.decode(z) - x0).square().mean().sqrt()) < 0.04
        g = torch.Generator().manual_seed(0)
        for sigma in (0.1, 0.5, 2.0):
            noisy = z + sigma * torch.randn(z.shape, generator=g)
            assert float((prior(noisy, sigma) - z).square().mean().sqrt()) < 0.7 * sigma
