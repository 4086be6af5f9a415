"""What channels_last, bfloat16 and torch.compile gain and lose on the denoisers that ship.

    python benchmarks/denoiser_speed.py [--rounds 5] [--threads 2] [--batch 4] [--device cpu] [--no-compile]

Per option: time of a forward call, and of one with its backpropagation to the image, over that of float32 in torch's
default memory order (medians over rounds, the options taking turns in the same process); and the largest change in the
PSNR of denoised images over noise levels 0.02 to 10, in dB, minus being a loss.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from invdiff import load_prior
from invdiff.datasets import sparse_view_ct
from invdiff.evaluation.metrics import psnr
from invdiff.priors import NetworkPrior

LEVELS = (0.02, 0.1, 0.5, 2.0, 10.0)


def options(name: str, device: str, compiled: bool) -> dict[str, NetworkPrior]:
    """Each with a module of its own, since memory order is a property of the module."""

    def fresh() -> NetworkPrior:
        prior = load_prior(name, device=device)
        assert isinstance(prior, NetworkPrior)
        return prior

    plain = fresh()
    plain.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    table = {
        "float32": plain,
        "channels_last": fresh().fast(channels_last=True),
        "channels_last, bfloat16": fresh().fast(channels_last=True, bfloat16=True),
    }
    if compiled:
        table["channels_last, compiled"] = fresh().fast(channels_last=True, compiled=True)
        table["channels_last, bfloat16, compiled"] = fresh().fast(channels_last=True, bfloat16=True, compiled=True)
    return table


def seconds(work: Callable[[], object], device: str) -> float:
    begun = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, n = arguments.device, arguments.batch
    hardware = torch.cuda.get_device_name() if device != "cpu" else f"{arguments.threads} CPU threads"
    print(f"{hardware}, batch of {n}, {arguments.rounds} rounds, torch {torch.__version__}")
    print(f"{'prior':<16}{'option':<36}{'forward':>9}{'and back':>10}{'PSNR dB':>10}")
    for name in ("ct-128", "brain-mri-128"):
        table = options(name, device, not arguments.no_compile)
        shape = table["float32"].shape
        reference = table["float32"].from_image(sparse_view_ct().reference, sparse_view_ct())
        x = reference.expand(n, *shape).to(device)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)

        def forward(prior: NetworkPrior, x: torch.Tensor = x) -> torch.Tensor:
            with torch.no_grad():
                return prior(x, 1.0)

        def back(prior: NetworkPrior, x: torch.Tensor = x) -> torch.Tensor:
            v = x.clone().requires_grad_(True)
            return torch.autograd.grad(prior(v, 1.0).sum(), v)[0]

        times: dict[str, tuple[list[float], list[float]]] = {k: ([], []) for k in table}
        for i in range(arguments.rounds + 1):
            for option, prior in table.items():
                t = (
                    seconds(lambda prior=prior: forward(prior), device),
                    seconds(lambda prior=prior: back(prior), device),
                )
                if i > 0:  # the first round warms up
                    times[option][0].append(t[0])
                    times[option][1].append(t[1])
        base = [statistics.median(t) for t in times["float32"]]
        with torch.no_grad():
            quality = {k: [psnr(p(x + s * noise, s), x, data_range=2.0) for s in LEVELS] for k, p in table.items()}
        for option in table:
            ratios = [statistics.median(t) / b for t, b in zip(times[option], base, strict=True)]
            change = max((a - b for a, b in zip(quality[option], quality["float32"], strict=True)), key=abs)
            print(f"{name:<16}{option:<36}{ratios[0]:>9.2f}{ratios[1]:>10.2f}{change:>+10.4f}")


if __name__ == "__main__":
    main()
