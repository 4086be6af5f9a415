"""A sample's stream depends on (seed, item, index) and on nothing else."""

import pytest
import torch

from invdiff.random import SampleStreams


def test_sample_3_of_8_is_sample_3_of_64() -> None:
    few, many = SampleStreams(7, range(8), "slice 1"), SampleStreams(7, range(64), "slice 1")
    for shape in ((2, 5), (300,)):  # also after draws of another size
        assert torch.equal(few.randn(shape)[3], many.randn(shape)[3])
    tail = SampleStreams(7, range(3, 5), "slice 1")
    tail.randn((2, 5))
    many = SampleStreams(7, range(64), "slice 1")
    many.randn((2, 5))
    assert torch.equal(tail.randn((300,))[0], many.randn((300,))[3])


def test_seeds_items_and_samples_differ() -> None:
    draws = [
        SampleStreams(seed, range(4), item).randn((64,))[i] for seed in (0, 1) for item in ("", "a") for i in range(4)
    ]
    x = torch.stack(draws)
    correlation = torch.corrcoef(x) - torch.eye(len(x))
    assert float(correlation.abs().max()) < 0.6


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    SampleStreams(0, range(3)).randn((10,))
    assert torch.equal(before, torch.random.get_rng_state())


def test_complex_numbers_have_unit_variance_per_component() -> None:
    z = SampleStreams(0, range(2)).randn((50_000,), dtype=torch.complex64)
    assert float(z.real.var()) == pytest.approx(1, abs=0.03)
    assert float(z.imag.var()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("seed", [None, 1.5, True])
def test_seed_must_be_an_integer(seed: object) -> None:
    with pytest.raises(TypeError, match="seed must be an integer"):
        SampleStreams(seed, range(2))  # type: ignore[arg-type]
