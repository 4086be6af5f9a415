"""Weights of zea's diffusion network as numpy arrays in Keras's order, with the output of zea (recorded)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.priors import load_prior

from .layouts import network_input, random_weights

REFERENCE = json.loads(Path(__file__).with_name("references.json").read_text())["zea"]


def arrays() -> list[np.ndarray]:
    return [w.numpy() for w in random_weights(REFERENCE["shapes"], std=0.1).values()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.savez(tmp_path / "echonet.npz", *arrays())
    return tmp_path / "echonet.npz"


def test_network_against_zea(path: Path) -> None:
    # at the default frequencies, up to 1000, the last bit of a frequency in float32 already turns the phase by 3e-4
    prior = load_prior(path, size=16, frequencies=(1.0, 10.0))
    y = prior.module.net(network_input(1, 16), torch.tensor(REFERENCE["labels"]))
    expected = torch.tensor(REFERENCE["output"])
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(y[..., ::4, ::4].flatten(), expected, rtol=1e-5, atol=1e-5)


def test_denoiser_inverts_the_mixture_that_the_network_saw(path: Path) -> None:
    prior = load_prior(path, size=16)
    angle = torch.tensor([0.4, 1.5])  # cos(a) x0 + sin(a) n
    signal, noise = (f(angle)[:, None, None, None] for f in (torch.cos, torch.sin))
    v = network_input(1, 16)
    clean = (v - noise * prior.module.net(v, torch.sin(angle) ** 2)) / signal
    scale = float(clean.abs().max())
    torch.testing.assert_close(prior(v / signal, torch.tan(angle)), clean, rtol=1e-4, atol=1e-5 * scale)
    assert prior.sigma_min == pytest.approx(np.tan(np.arccos(0.95)))
    assert prior.sigma_max == pytest.approx(np.tan(np.arccos(0.02)))


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "z.npz", arrays()
    for bad, match in (
        (good[1:], r"arr_0 should be the 1 x 1 kernel of stem, it has the shape \(8,\)"),
        (good[:-1], r"expected the bias of head after"),
        ([*good, good[0]], "1 arrays are left over"),
        ([*good[:4], good[0], *good[5:]], "arr_4 should be the 3 x 3 kernel of blocks.0.conv1"),
    ):
        np.savez(path, *bad)
        with pytest.raises(ValueError, match=match):
            load_prior(path, size=16)
    np.savez(path, *good)
    with pytest.raises(ValueError, match="divisible by 4"):
        load_prior(path, size=18)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="not a readable file of numpy arrays"):
        load_prior(path, size=16)
    np.savez(path, arr_0=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="not a readable file of numpy arrays"):
        load_prior(path, size=16)
