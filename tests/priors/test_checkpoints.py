"""Prior files: round trip, refusals, and the ones that ship."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from invdiff.priors import EDMDenoiser, PriorInfo, load_prior, save_prior, shipped_priors
from invdiff.priors.checkpoints import Checkpoint, Network, read_checkpoint, read_safetensors
from invdiff.priors.edm import SongUNet
from invdiff.priors.networks import UNet

NETWORK = {"widths": (8, 16), "n_blocks": 1, "unshuffle": 2}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(**NETWORK)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.05)
    info = PriorInfo(name="p", value_range=(0.0, 2.0), pixel_size=(1.0, 2.0), licence="CC0")
    save_prior(
        tmp_path / "p.safetensors",
        EDMDenoiser(net),
        NETWORK,
        shape=(1, 16, 16),
        sigma_min=0.01,
        sigma_max=80,
        info=info,
    )
    torch.save(net.state_dict(), tmp_path / "p.pt")
    return tmp_path / "p.safetensors"


def test_loaded_prior_is_the_saved_one_up_to_half_precision(path: Path) -> None:
    prior = load_prior(path)
    assert (prior.shape, prior.sigma_min, prior.sigma_max) == ((1, 16, 16), 0.01, 80)
    assert (prior.info.value_range, prior.info.pixel_size, prior.info.licence) == (
        (0.0, 2.0),
        (1.0, 2.0),
        "CC0",
    )
    assert len(prior.info.sha256) == 64
    net = UNet(**NETWORK)
    net.load_state_dict(torch.load(path.with_suffix(".pt"), weights_only=True))
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 2.0])
    torch.testing.assert_close(prior(x, sigma), EDMDenoiser(net)(x, sigma).detach(), rtol=0, atol=5e-3)


def test_wrong_files_are_refused(path: Path) -> None:
    with pytest.raises(KeyError, match="neither a file nor a shipped prior"):
        load_prior("ct-129")
    with pytest.raises(ValueError, match=r"nor a known checkpoint \(it holds 'embed.1.weight'"):
        load_prior(path.with_suffix(".pt"))
    objects = path.with_name("objects.pkl")
    objects.write_bytes(pickle.dumps({"ema": PriorInfo(name="an object")}))
    with pytest.raises(ValueError, match=r"Pickles are not loaded.*convert objects.pkl.*--i-trust-this-file"):
        load_prior(objects)
    with pytest.raises(ValueError, match="an .npz file or a folder of diffusers; test_checkpoints.py is none"):
        load_prior(Path(__file__))
    truncated = path.with_name("t.safetensors")
    truncated.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated"):
        load_prior(truncated)
    plain = path.with_name("plain.safetensors")
    save_file({"a": torch.zeros(1)}, plain)
    with pytest.raises(ValueError, match="not an invdiff prior"):
        load_prior(plain)


def test_missing_and_unexpected_weights_are_named(path: Path) -> None:
    from safetensors import safe_open

    weights = load_file(path)
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
    weights["extra"] = weights.pop("stem.bias")
    save_file(weights, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"missing \['stem.bias'\], unexpected \['extra'\]"):
        load_prior(path)


def test_headers_are_not_trusted(path: Path) -> None:
    from safetensors import safe_open

    weights = load_file(path)
    with safe_open(path, "pt") as f:
        header = json.loads(f.metadata()["invdiff"])
    part = {"class": "UNet", "arguments": header["network"]}
    new = header | {"network": part, "denoiser": {"class": "EDMDenoiser", "sigma_data": 0.5}}
    for version, change, match in (
        (1, {"network": {"depth": 3}}, "unexpected keyword argument|header that cannot be read"),
        (1, {"info": {"colour": 1}}, "header that cannot be read"),
        (2, {"denoiser": {"class": "os.system"}}, "unknown denoiser 'os.system'"),
        (2, {"network": part | {"class": "os.system"}}, "Unknown network 'os.system'"),
    ):
        metadata = {
            "format": f"invdiff-prior-{version}",
            "invdiff": json.dumps((header if version == 1 else new) | change),
        }
        save_file(weights, path, metadata=metadata)
        with pytest.raises((ValueError, TypeError), match=match):
            load_prior(path)
    save_file(weights, path, metadata={"format": "invdiff-prior-2", "invdiff": json.dumps(new)})
    assert load_prior(path).shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"network": {"foo": 1}}, "UNet cannot be built .*unexpected keyword argument 'foo'"),
        ({"network": {"widths": "abc"}}, "UNet cannot be built"),
        ({"network": {"widths": [0]}}, "UNet cannot be built"),
        ({"network": {"widths": [-8]}}, "UNet cannot be built"),
        ({"network": {"widths": [10**10]}}, "weights are too few for {'widths': "),
        ({"network": {"widths": [8], "n_blocks": 10**9}}, "weights are too few for {'widths': "),
        ({"network": [1, 2]}, "header that cannot be read"),
        ({"shape": "abc"}, r"shape must be .*whole numbers above 0, got \('a', 'b', 'c'\)"),
        ({"shape": [3, 16, 16]}, r"shape \(3, 16, 16\), but its network takes 1 channel"),
        ({"sigma_min": "a"}, "sigma_min must be a number above 0, got 'a'"),
        ({"sigma_data": 0}, "sigma_data must be a number above 0, got 0"),
        ({"sigma_data": "x"}, "sigma_data must be a number above 0, got 'x'"),
        ({"info": {"name": "p", "value_range": [1], "pixel_size": None}}, r"value_range must be two .*got \(1,\)"),
        ({"info": {"name": "p", "value_range": [0, 1], "pixel_size": [0, 1]}}, "pixel_size must be two .*above 0"),
    ],
)  # fmt: skip
def test_a_header_that_makes_no_sense_is_a_value_error(path: Path, change: dict, match: str) -> None:
    weights, metadata = read_safetensors(path)
    header = json.loads(metadata["invdiff"]) | change
    save_file(weights, path, metadata=metadata | {"invdiff": json.dumps(header)})
    with pytest.raises(ValueError, match=match):
        load_prior(path)


def test_a_small_file_does_not_make_a_large_network(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places, linear = set(), torch.nn.Linear.__init__

    def watched(self: torch.nn.Linear, *arguments: int, **options: bool) -> None:
        linear(self, *arguments, **options)
        places.add(self.weight.device.type)

    weights, metadata = read_safetensors(path)
    header = json.loads(metadata["invdiff"]) | {"network": {"widths": [768, 768], "n_blocks": 4}}
    save_file(weights, path, metadata=metadata | {"invdiff": json.dumps(header)})
    monkeypatch.setattr(torch.nn.Linear, "__init__", watched)
    with pytest.raises(ValueError, match="does not fit its network"):
        load_prior(path)
    assert places == {"meta"}  # nothing is allocated there


def test_the_data_range_survives(path: Path) -> None:
    plain = read_checkpoint(path)
    replace(plain, data_range=(0.0, 1.0)).save(path)
    assert read_checkpoint(path).data_range == (0.0, 1.0)
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = 2 * plain.prior()((x + 1) / 2, 0.1) - 1
    torch.testing.assert_close(load_prior(path)(x, 0.2), expected)


def test_half_precision_spares_the_frequencies_of_the_noise_level(tmp_path: Path) -> None:
    # they are multiplied by 2 pi ln(sigma / 2): rounding by up to 0.008 would turn a phase at sigma 0.02 by 0.2
    arguments = {"image_size": 16, "in_channels": 1, "out_channels": 1, "channels": 32, "widths": [32], "n_blocks": 1}
    weights = SongUNet(**arguments).state_dict()
    weights["map_noise.freqs"] = 16 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    Checkpoint(
        network=Network(name="SongUNet", arguments=arguments, weights=weights), denoiser={"class": "VEDenoiser"},
        shape=(1, 16, 16), sigma_min=0.02, sigma_max=700.0, info=PriorInfo(name="ncsn"),
    ).save(tmp_path / "half.safetensors", dtype=torch.float16)  # fmt: skip
    got = load_file(tmp_path / "half.safetensors")
    assert torch.equal(got["map_noise.freqs"], weights["map_noise.freqs"])
    assert got["map_layer0.weight"].dtype == torch.float16


def test_what_ships_stays_light() -> None:
    assert sum(file.stat().st_size for file in shipped_priors().values()) < 25e6


@pytest.mark.parametrize("name", [n for n in shipped_priors() if "latent" not in n])
class TestShipped:
    def test_is_small_and_has_a_card(self, name: str) -> None:
        file = shipped_priors()[name]
        assert file.stat().st_size < 6e6
        card = file.with_suffix(".md").read_text()
        for word in ("licence", "trained on", "held out", "| sigma | noisy | TV | this prior |"):
            assert word in card

    def test_denoises_a_disc_at_every_level(self, name: str) -> None:
        # an image it was not trained on; a denoiser must beat its input and stay in range
        prior = load_prior(name)
        y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
        inside, outside = (0.5, 0.0) if prior.shape[0] == 2 else (0.1, -1.0)  # complex: a constant phase of 45 degrees
        x0 = torch.where(x**2 + y**2 < 0.5, inside, outside).expand(1, *prior.shape)
        left = 0.8 if name == "b-mode-128" else 0.6  # of the noise; speckle is never as flat as this disc
        g = torch.Generator().manual_seed(0)
        for sigma in (0.05, 0.2, 0.5, 1.0, 2.0):
            noisy = x0 + sigma * torch.randn(x0.shape, generator=g)
            error = float((prior(noisy, sigma) - x0).square().mean().sqrt())
            assert error < left * sigma
