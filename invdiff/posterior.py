"""Posterior samples and what was spent to get them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Samples of p(image | data), in the measurement's physical units.

    Attributes:
        samples: (n_samples, channel, [z,] y, x); one "sample" for a point estimate. Complex from a classical method
            whose operator takes complex images; priors make real ones (two channels for real and imaginary part).
        units: of the image, e.g. "1/mm".
        algorithm: the algorithm with its parameters, as text.
        prior: the prior's name and sha256, or "" for a classical method.
        seed, item: what the random streams were derived from.
        nfe: denoiser evaluations per sample.
        seconds: wall time of the run.
        peak_memory: largest resident size of the process so far, in bytes.
        metadata: carried over from the measurement.

    Example:
        >>> from invdiff import Posterior
        >>> p = Posterior(samples=torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1), units="1/mm")
        >>> float(p.mean), float(p.std), float(p.quantile(0.75))
        (1.0, 1.0, 1.5)
    """

    samples: Tensor
    units: str = "relative"
    algorithm: str = ""
    prior: str = ""
    seed: int = 0
    item: str = ""
    nfe: float = 0
    seconds: float = 0.0
    peak_memory: int = field(default_factory=lambda: peak_memory())
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def n_samples(self) -> int:
        """How many samples there are."""
        return self.samples.shape[0]

    @property
    def mean(self) -> Tensor:
        """Posterior mean, the estimate of least mean squared error."""
        return self.samples.mean(0)

    @property
    def std(self) -> Tensor:
        """Per-pixel standard deviation (n - 1 in the denominator), real; needs two samples."""
        if self.n_samples < 2:
            raise ValueError(f"A standard deviation needs at least 2 samples, this posterior has {self.n_samples}.")
        return self.samples.std(0)

    def quantile(self, q: float) -> Tensor:
        """Per-pixel quantile, 0 <= q <= 1, linear between order statistics; of real images only."""
        if not 0 <= q <= 1:
            raise ValueError(f"q must lie in [0, 1], got {q}.")
        if self.samples.is_complex():
            raise TypeError("Complex images have no quantiles; take those of a Posterior of their magnitudes.")
        return torch.quantile(self.samples, q, dim=0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central per-pixel interval (lower, upper). Quantiles of few samples are too narrow: with fewer than
        20, judge calibration by ranks instead."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1), got {level}.")
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write ``posterior.safetensors`` (samples, mean, std, and what is known about the run) and
        ``posterior.json`` (the same, to read) into ``folder``. Each file is written aside and renamed; other
        files in the folder are left alone.

        Raises:
            FileExistsError: the folder is not empty and ``overwrite`` is False.
        """
        from invdiff.storage import save_posterior

        save_posterior(self, Path(folder), overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> Posterior:
        """Read what :meth:`save` wrote."""
        from invdiff.storage import load_posterior

        return cls(**load_posterior(Path(folder)))

    def export(self, path: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write files that other programs open; the name's ending says which. Each is written aside and renamed.

        ``x.nii.gz`` or ``x.nii``: NIfTI images named as BIDS derivatives, ``x_desc-mean_image.nii.gz``,
        ``x_desc-std_image.nii.gz`` and ``x_desc-samples_image.nii.gz``, each with a JSON sidecar. The affine is that of
        the measurement's metadata (``"affine"``, a list of four lists of four numbers, from the index (x, y, z) to mm
        in RAS), else a centred grid of its ``"voxel_size_mm"`` or ``"pixel_size_mm"``. Complex images stay complex.
        ``x.h5``: as fastMRI's evaluation reads it (:func:`invdiff.datasets.fastmri.write_fastmri`): magnitudes.
        ``x.png``: a figure of mean, one sample and standard deviation; magnitudes of complex images.

        Returns:
            The files written.

        Raises:
            ValueError: another ending; DICOM is refused, for these are no acquired images.
            FileExistsError: a file exists and ``overwrite`` is False.
        """
        from invdiff.storage import export_posterior

        return export_posterior(self, Path(path), overwrite=overwrite)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.samples.shape))
        return f"Posterior({shape} {self.units}, {self.algorithm or 'unnamed'}, nfe={self.nfe:g}, {self.seconds:.1f} s)"


def peak_memory() -> int:
    """Largest resident set size of this process so far, in bytes (0 where the platform does not tell)."""
    try:
        import resource
        import sys
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
