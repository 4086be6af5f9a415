"""Phantoms: images with known truth, some with their line integrals in closed form, as torch datasets.

Everything that is random in item ``i`` comes from ``(seed, i)``, so it is the same whichever other items were asked
for, and in whichever process. Grids are those of the CT geometries: row 0 at the largest y, lengths in mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from torch import Tensor
from torch.utils.data import Dataset

from invdiff.datasets.ct_units import MU_WATER
from invdiff.operators.ct import Geometry
from invdiff.operators.ct_geometry import ParallelBeam
from invdiff.operators.mri_coils import birdcage_maps

# value, half axes (x, y), centre (x, y), turn in degrees, in units of half the image's side.
# L. A. Shepp and B. F. Logan, IEEE Trans. Nucl. Sci. 21, 1974; contrast raised as by P. Toft, PhD thesis, 1996.
SHEPP_LOGAN = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0), (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0), (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0), (0.1, 0.21, 0.25, 0.0, 0.35, 0.0), (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0), (0.1, 0.046, 0.023, -0.08, -0.605, 0.0), (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)  # fmt: skip


def shepp_logan(side: float, *, scale: float = MU_WATER) -> np.ndarray:
    """The ellipses of the Shepp-Logan head with raised contrast, (10, 6), see :func:`ellipse_image`.

    Args:
        side: of the square that holds it, mm.
        scale: attenuation of the value 1 (the skull), 1/mm.

    Example:
        >>> from invdiff.datasets import ellipse_image, shepp_logan
        >>> x = ellipse_image(shepp_logan(32.0), (64, 64), 0.5)
        >>> tuple(x.shape), round(float(x.max()), 4)  # the skull, 1/mm
        ((1, 64, 64), 0.0193)
    """
    table = np.array(SHEPP_LOGAN)
    return table * [scale, *[side / 2] * 4, math.pi / 180]


def ellipse_image(ellipses: np.ndarray, shape: tuple[int, int], pixel_size: float, *, supersampling: int = 4) -> Tensor:
    """Sum of uniform ellipses, (1, ny, nx), each pixel the mean of ``supersampling`` ** 2 points in it.

    Args:
        ellipses: (n, 6): value, half axes (x, y) in mm, centre (x, y) in mm, turn (counterclockwise) in rad.
        shape, pixel_size: (ny, nx) pixels of so many mm.

    Example:
        >>> import numpy as np
        >>> from invdiff.datasets import ellipse_image
        >>> disc = np.array([[0.02, 10.0, 10.0, 0.0, 0.0, 0.0]])  # 0.02 / mm, radius 10 mm, in the centre
        >>> x = ellipse_image(disc, (48, 48), 0.5)
        >>> round(float(x[0, 24, 24]), 4), bool(abs(float(x.sum()) * 0.5**2 / (0.02 * np.pi * 10**2) - 1) < 0.01)
        (0.02, True)
    """
    ny, nx = shape
    k = supersampling
    fine = ParallelBeam(
        image_shape=(ny * k, nx * k), pixel_size=pixel_size / k, angles=(0.0,), n_detectors=1, detector_spacing=1.0
    )
    x, y = fine.pixel_centres()
    image = np.zeros((ny * k, nx * k))
    for value, *parameters in np.asarray(ellipses).tolist():
        u, v = _in_frame(np.broadcast_to(x, image.shape), np.broadcast_to(y[:, None], image.shape), parameters)
        image[u * u + v * v <= 1] += value
    return torch.from_numpy(image.reshape(ny, k, nx, k).mean((1, 3))).float()[None]


def ellipse_sinogram(ellipses: np.ndarray, geometry: Geometry, *, supersampling: int = 1) -> Tensor:
    """Line integrals of :func:`ellipse_image` in closed form, (1, n_views, n_detectors), for any geometry.

    In the coordinates in which an ellipse is the unit circle, a ray ``q + s e`` is inside it for a length
    ``2 sqrt((q.e)^2 - |e|^2 (|q|^2 - 1)) / |e|^2`` of s.

    Args:
        ellipses: as in :func:`ellipse_image`.
        supersampling: rays averaged per detector element.

    Example:
        >>> import numpy as np
        >>> from invdiff.datasets import ellipse_sinogram
        >>> from invdiff.operators import ParallelBeam
        >>> beam = ParallelBeam(
        ...     image_shape=(9, 9), pixel_size=4.0, angles=(0.0, 1.0), n_detectors=9, detector_spacing=4.0
        ... )
        >>> y = ellipse_sinogram(np.array([[0.02, 10.0, 10.0, 0.0, 0.0, 0.0]]), beam)
        >>> tuple(y.shape), round(float(y[0, 0, 4]), 4)  # 20 mm of 0.02 / mm
        ((1, 2, 9), 0.4)
    """
    origins, directions = geometry.rays(supersampling)
    integrals = np.zeros(origins.shape[:2])
    for value, *parameters in np.asarray(ellipses).tolist():
        q = _in_frame(origins[..., 0], origins[..., 1], parameters)
        e = _in_frame(directions[..., 0], directions[..., 1], [*parameters[:2], 0.0, 0.0, parameters[4]])
        qe, ee, qq = q[0] * e[0] + q[1] * e[1], e[0] ** 2 + e[1] ** 2, q[0] ** 2 + q[1] ** 2
        integrals += value * 2 * np.sqrt(np.clip(qe**2 - ee * (qq - 1), 0, None)) / ee
    return torch.from_numpy(integrals.reshape(len(integrals), -1, supersampling).mean(-1)).float()[None]


def _in_frame(x: np.ndarray, y: np.ndarray, parameters: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in which the ellipse is the unit circle."""
    a, b, x0, y0, turn = parameters
    c, s = math.cos(turn), math.sin(turn)
    return (c * (x - x0) + s * (y - y0)) / a, (c * (y - y0) - s * (x - x0)) / b


class _Phantoms(Dataset):
    """``n`` items, each from its own random stream."""

    def __init__(self, n: int, shape: tuple[int, int], pixel_size: float, seed: int) -> None:
        if n < 1 or min(shape) < 8 or not pixel_size > 0:
            raise ValueError(
                f"Expected n >= 1, a shape of 8 x 8 or more and pixel_size > 0, got {n}, {shape}, {pixel_size}."
            )
        self.n, self.shape, self.pixel_size, self.seed = n, (int(shape[0]), int(shape[1])), pixel_size, seed

    def __len__(self) -> int:
        return self.n

    def rng(self, index: int) -> np.random.Generator:
        """The random stream of one item."""
        if not 0 <= index < self.n:
            raise IndexError(f"index must lie in 0 to {self.n - 1}, got {index}.")
        return np.random.default_rng([self.seed, index])

    @property
    def field(self) -> float:
        """The shorter side, mm."""
        return min(self.shape) * self.pixel_size


class RandomEllipses(_Phantoms):
    """Sums of random ellipses in 1/mm, (1, y, x): a textbook training set for CT.

    Args:
        n: items.
        shape, pixel_size: (ny, nx) pixels of so many mm.
        seed: of all items.
        n_ellipses: (least, most) per item, ends included.
        scale: attenuation of the first, largest ellipse, 1/mm; the others add up to half of it either way.

    Example:
        >>> from invdiff.datasets import RandomEllipses
        >>> images = RandomEllipses(3, (32, 32), seed=0)
        >>> len(images), tuple(images[0].shape), torch.equal(images[2], RandomEllipses(3, (32, 32), seed=0)[2])
        (3, (1, 32, 32), True)
    """

    def __init__(
        self, n: int, shape: tuple[int, int] = (128, 128), pixel_size: float = 1.0, *, seed: int = 0,
        n_ellipses: tuple[int, int] = (5, 20), scale: float = MU_WATER,
    ) -> None:  # fmt: skip
        super().__init__(n, shape, pixel_size, seed)
        self.n_ellipses, self.scale = n_ellipses, scale

    def ellipses(self, index: int) -> np.ndarray:
        """What item ``index`` is made of, for :func:`ellipse_sinogram`."""
        rng, half = self.rng(index), self.field / 2
        n = int(rng.integers(self.n_ellipses[0], self.n_ellipses[1] + 1))
        body = [self.scale, *half * rng.uniform(0.6, 0.9, 2), 0, 0, rng.uniform(0, math.pi)]
        radius, turn = 0.5 * half * np.sqrt(rng.random(n - 1)), rng.uniform(0, 2 * math.pi, (2, n - 1))
        axes = half * rng.uniform(0.03, 0.25, (n - 1, 2))
        value = self.scale * rng.uniform(-0.5, 0.5, n - 1)
        inner = np.column_stack([value, axes, radius * np.cos(turn[0]), radius * np.sin(turn[0]), turn[1]])
        return np.vstack([body, inner])

    def __getitem__(self, index: int) -> Tensor:
        return ellipse_image(self.ellipses(index), self.shape, self.pixel_size).clamp(min=0)


class DiscWithHoles(_Phantoms):
    """A uniform disc with round and elongated holes that do not touch, as in the Helsinki Tomography Challenge 2022.

    Items are (1, y, x) in 1/mm, with two values only but for partial pixels; the line integrals are those of
    :meth:`ellipses` in closed form.

    Args:
        n, shape, pixel_size, seed: as in :class:`RandomEllipses`; the disc fills 0.85 of the field.
        n_holes: (least, most), ends included; fewer where no more fit.
        attenuation: of the disc, 1/mm; the default is acrylic in the challenge's files.

    Example:
        >>> from invdiff.datasets import DiscWithHoles
        >>> discs = DiscWithHoles(2, (64, 64), seed=0)
        >>> tuple(discs[1].shape), round(float(discs[1].max()), 3)  # acrylic, 1/mm
        ((1, 64, 64), 0.036)
    """

    def __init__(
        self, n: int, shape: tuple[int, int] = (128, 128), pixel_size: float = 0.65, *, seed: int = 0,
        n_holes: tuple[int, int] = (3, 12), attenuation: float = 0.036,
    ) -> None:  # fmt: skip
        super().__init__(n, shape, pixel_size, seed)
        self.n_holes, self.attenuation = n_holes, attenuation

    def ellipses(self, index: int) -> np.ndarray:
        """The disc, then its holes with negative value."""
        rng, radius = self.rng(index), 0.85 * self.field / 2
        n = int(rng.integers(self.n_holes[0], self.n_holes[1] + 1))
        rows, gap = [[self.attenuation, radius, radius, 0.0, 0.0, 0.0]], 0.03 * radius
        for _ in range(50 * n):
            if len(rows) > n:
                break
            a, ratio = radius * rng.uniform(0.06, 0.25), rng.choice([1.0, rng.uniform(0.3, 0.8)])
            x, y = radius * rng.uniform(-1, 1, 2)
            apart = all(math.hypot(x - r[3], y - r[4]) > a + max(r[1], r[2]) + gap for r in rows[1:])
            if math.hypot(x, y) + a + gap < radius and apart:
                rows.append([-self.attenuation, a, a * ratio, x, y, rng.uniform(0, math.pi)])
        return np.array(rows)

    def __getitem__(self, index: int) -> Tensor:
        return ellipse_image(self.ellipses(index), self.shape, self.pixel_size).clamp(min=0)


class AcrylicDiscs(_Phantoms):
    """Discs with holes of many shapes, (1, y, x) in 1/mm: the training images of the prior for HTC 2022.

    The holes of one disc are of one kind: ellipses; polygons with rounded corners, turned at random or all alike;
    the cells of a Voronoi diagram with walls between them; or there are none. They do not touch each other or the
    rim. The disc darkens towards its middle, as acrylic does under a polychromatic beam that was not corrected.

    Args:
        n, shape, pixel_size, seed: as in :class:`RandomEllipses`.
        radius: least and greatest radius of the disc over half the field.
        attenuation: at the rim, 1/mm.
        cupping: greatest share of the attenuation that is missing in the middle.

    Example:
        >>> from invdiff.datasets.phantoms import AcrylicDiscs
        >>> disc = AcrylicDiscs(8, seed=1)[3]
        >>> tuple(disc.shape), bool(disc.max() < 0.0361), bool(disc[0, 0, 0] == 0)
        ((1, 192, 192), True, True)
    """

    def __init__(
        self, n: int, shape: tuple[int, int] = (192, 192), pixel_size: float = 0.433, *, seed: int = 0,
        radius: tuple[float, float] = (0.8, 0.88), attenuation: float = 0.036, cupping: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__(n, (int(shape[0]), int(shape[1])), pixel_size, seed)
        self.radius, self.attenuation, self.cupping = radius, attenuation, cupping

    def __getitem__(self, index: int) -> Tensor:
        rng, k = self.rng(index), 2  # points per pixel and axis
        ny, nx = (k * side for side in self.shape)
        half = min(ny, nx) / 2
        y, x = np.ogrid[0:ny, 0:nx]
        u, v = (x + 0.5 - nx / 2) / half, (ny / 2 - y - 0.5) / half
        radius = rng.uniform(*self.radius)
        distance = np.hypot(u, v) / radius
        walls = (self._cells if rng.random() < 0.25 else self._shapes)(rng, u / radius, v / radius)
        walls = gaussian_filter(walls.astype(np.float32), rng.uniform(0.005, 0.03) * half) > 0.5  # rounds corners
        solid = (walls | (distance > 0.97)) & (distance <= 1)
        profile = self.attenuation * (1 - rng.uniform(0, self.cupping) * (1 - distance**2).clip(0))
        image = (solid * profile).reshape(self.shape[0], k, self.shape[1], k).mean((1, 3))
        return torch.from_numpy(image).float()[None]

    @staticmethod
    def _cells(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Walls between the Voronoi cells of random points: where the two nearest points are almost equally far."""
        wall, inner, least = rng.uniform(0.03, 0.1), rng.uniform(0.6, 0.9), rng.uniform(0.25, 0.5)
        points: list[np.ndarray] = []
        for p in rng.uniform(-0.8, 0.8, (60, 2)):
            if np.hypot(*p) < 0.85 and all(np.hypot(*(p - q)) > least for q in points):
                points.append(p)
        squares = np.stack([(u - a) ** 2 + (v - b) ** 2 for a, b in points]).astype(np.float32)
        order = np.argsort(squares, axis=0)[:2] if len(points) > 1 else np.zeros((2, 1, 1), int)
        near, next_ = (np.take_along_axis(squares, o[None], 0)[0] for o in order)
        between = np.hypot(*(np.array(points).T[:, order[1]] - np.array(points).T[:, order[0]])) + 1e-9
        return ((next_ - near) / (2 * between) < wall / 2) | (np.hypot(u, v) > inner)

    @staticmethod
    def _shapes(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Everything but up to twelve ellipses or polygons that do not touch."""
        solid = np.ones(np.broadcast_shapes(u.shape, v.shape), bool)
        corners = int(rng.choice([0, 0, 4, 4, 5, 6]))  # 0: ellipses
        stretch, size = rng.uniform(0.35, 1) if rng.random() < 0.7 else 1.0, rng.uniform(0.1, 0.25)
        common = rng.uniform(0, math.pi) if rng.random() < 0.5 else None
        holes: list[tuple[float, float, float]] = []
        wanted = int(rng.integers(0, 13))
        for _ in range(20 * wanted):
            if len(holes) == wanted:
                break
            r = size * rng.uniform(0.7, 1.3)
            a, b = rng.uniform(-1, 1, 2)
            if np.hypot(a, b) + r > 0.93 or any(np.hypot(a - c, b - d) < r + e + 0.04 for c, d, e in holes):
                continue
            holes.append((a, b, r))
            turn = common + rng.normal(0, 0.1) if common is not None else rng.uniform(0, math.pi)
            p = (math.cos(turn) * (u - a) + math.sin(turn) * (v - b)) / r
            q = (math.cos(turn) * (v - b) - math.sin(turn) * (u - a)) / (r * stretch)
            if corners == 0:
                solid &= p * p + q * q > 1
                continue
            angles = 2 * math.pi * (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) / corners + math.pi / 4
            px, py = np.cos(angles), np.sin(angles)
            sides = [
                (np.roll(px, -1)[i] - px[i]) * (q - py[i]) - (np.roll(py, -1)[i] - py[i]) * (p - px[i]) > 0
                for i in range(corners)
            ]
            solid &= ~np.logical_and.reduce(sides)
        return solid


# Proton density, T1 and T2 in ms at 1.5 T; rounded from textbook values (e.g. Haacke et al. 1999).
TISSUES = {
    "fat": (0.9, 250.0, 60.0), "csf": (1.0, 4000.0, 2000.0), "grey": (0.85, 950.0, 100.0),
    "white": (0.7, 600.0, 80.0), "lesion": (0.9, 1200.0, 180.0),
}  # fmt: skip
CONTRASTS = {"T1": (500.0, 15.0), "T2": (4000.0, 90.0), "PD": (4000.0, 15.0)}  # repetition and echo time, ms


class BrainLike(_Phantoms):
    """Head-shaped slices in three contrasts with one smooth phase, complex (3, y, x): T1-, T2- and PD-weighted.

    Skin, fluid, grey and white matter, ventricles and a few lesions are ellipses that vary from item to item; the
    signal of a tissue is that of a spin echo, ``PD (1 - exp(-TR / T1)) exp(-TE / T2)``. The largest magnitude of each
    contrast is 1.

    Args:
        n, shape, pixel_size, seed: as in :class:`RandomEllipses`.
        phase: largest phase, rad.
        n_coils: of :attr:`maps`.

    Example:
        >>> from invdiff.datasets import BrainLike
        >>> heads = BrainLike(2, (32, 32), seed=0)
        >>> x = heads[0]
        >>> tuple(x.shape), x.is_complex(), round(float(x.abs().max()), 3)
        ((3, 32, 32), True, 1.0)
    """

    def __init__(
        self, n: int, shape: tuple[int, int] = (128, 128), pixel_size: float = 1.8, *, seed: int = 0,
        phase: float = 1.5, n_coils: int = 8,
    ) -> None:  # fmt: skip
        super().__init__(n, shape, pixel_size, seed)
        self.phase, self.n_coils = phase, n_coils

    @property
    def maps(self) -> Tensor:
        """Birdcage coil sensitivities, (n_coils, y, x) complex."""
        return birdcage_maps(self.n_coils, self.shape)

    def tissues(self, index: int) -> dict[str, Tensor]:
        """The share of each tissue in every pixel, (y, x); together at most 1."""
        rng, half = self.rng(index), self.field / 2
        a, b, turn = *half * rng.uniform([0.65, 0.8], [0.75, 0.92]), rng.normal(0, 0.05)

        def share(*ellipses: tuple[float, ...]) -> Tensor:
            rows = np.array([[1.0, *e] for e in ellipses])
            return ellipse_image(rows, self.shape, self.pixel_size)[0].clamp(max=1)

        head, skull, cortex, core = (
            share((s * a, s * b, 0, 0, turn)) for s in (1.0, 0.92, 0.86, rng.uniform(0.7, 0.76))
        )
        size = half * rng.uniform([0.06, 0.2], [0.1, 0.28])
        tilt = rng.uniform(0.1, 0.3)
        ventricles = share((*size, -0.12 * half, 0, tilt), (*size, 0.12 * half, 0, -tilt))
        place = rng.uniform(0, 2 * math.pi, (int(rng.integers(0, 4)), 1))
        spots = [
            (*half * rng.uniform(0.02, 0.07, 2), 0.45 * a * math.cos(t), 0.45 * b * math.sin(t), 0.0) for (t,) in place
        ]
        lesion = share(*spots) * (1 - ventricles) if spots else torch.zeros_like(head)
        return {
            "fat": head - skull, "csf": skull - cortex + ventricles, "grey": cortex - core,
            "white": (core - ventricles - lesion).clamp(min=0), "lesion": lesion,
        }  # fmt: skip

    def __getitem__(self, index: int) -> Tensor:
        tissues = self.tissues(index)
        images = []
        for repetition, echo in CONTRASTS.values():
            signal = torch.zeros(self.shape)
            for name, (density, t1, t2) in TISSUES.items():
                signal += tissues[name] * density * (1 - math.exp(-repetition / t1)) * math.exp(-echo / t2)
            images.append(signal / signal.max())
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in self.shape), indexing="ij")
        c = np.random.default_rng([self.seed, index, 1]).uniform(-1, 1, 6)
        polynomial = c[0] + c[1] * x + c[2] * y + c[3] * x * y + c[4] * x * x + c[5] * y * y
        angle = self.phase * polynomial / polynomial.abs().max()
        return torch.polar(torch.stack(images), angle.expand(len(images), -1, -1))


class SpeckleCysts(_Phantoms):
    """Reflectivity for ultrasound, (1, z, x) real: speckle, round cysts without or with more of it, and points.

    The reflectivity is white Gaussian, its standard deviation the square root of the local backscatter, so that the
    envelope of its beamformed image has Rayleigh statistics (fully developed speckle) where the resolution cell holds
    many pixels. Shape is (nz, nx).

    Args:
        n, shape, pixel_size, seed: as in :class:`RandomEllipses`.
        n_cysts, n_points: per item.
        contrasts: backscatter of a cyst in dB, drawn from these; -inf is anechoic.
        point: reflectivity of a point target over the speckle's standard deviation.

    Example:
        >>> from invdiff.datasets import SpeckleCysts
        >>> x = SpeckleCysts(1, (64, 64), seed=0, contrasts=[float("-inf")])[0]
        >>> tuple(x.shape), bool((x == 0).any())  # anechoic cysts
        ((1, 64, 64), True)
    """

    def __init__(
        self, n: int, shape: tuple[int, int] = (128, 128), pixel_size: float = 0.15, *, seed: int = 0, n_cysts: int = 3,
        n_points: int = 4, contrasts: Sequence[float] = (-math.inf, -12.0, 6.0), point: float = 20.0,
    ) -> None:  # fmt: skip
        super().__init__(n, shape, pixel_size, seed)
        self.n_cysts, self.n_points, self.contrasts, self.point = n_cysts, n_points, tuple(contrasts), point

    def backscatter(self, index: int) -> Tensor:
        """Local backscatter relative to the background, (1, z, x): the truth that contrast measures compare with."""
        rng, half = self.rng(index), self.field / 2
        b = torch.ones(1, *self.shape)
        for _ in range(self.n_cysts):
            radius = half * rng.uniform(0.12, 0.3)
            x, z = (rng.uniform(-0.9, 0.9) * n * self.pixel_size / 2 for n in self.shape[::-1])
            inside = ellipse_image(np.array([[1.0, radius, radius, x, z, 0.0]]), self.shape, self.pixel_size)
            b = torch.lerp(b, torch.full_like(b, 10 ** (float(rng.choice(self.contrasts)) / 10)), inside)
        return b

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng([self.seed, index, 1])
        x = self.backscatter(index).sqrt() * torch.from_numpy(rng.normal(size=(1, *self.shape))).float()
        for _ in range(self.n_points):
            row, column = (int(rng.integers(n // 16, n - n // 16)) for n in self.shape)
            x[0, row, column] = self.point
        return x


class BModePhantoms(_Phantoms):
    """Simulated B-mode pictures, (1, z, x) from 0 to 255: speckle of layered tissue, cysts, bright interfaces.

    White complex scatterers, weighted by the local backscatter, are blurred by a point spread function that widens with
    depth, and the envelope is log-compressed. Backscatter varies smoothly and from layer to layer, falls with depth,
    and holds up to four cysts and five thin interfaces. Some pictures are of a curved array: beams that fan out from
    an arc at the top or, as of a probe inside the body, at the bottom; black outside. Shape is (nz, nx).

    Args:
        n, shape, pixel_size, seed: as in :class:`RandomEllipses`; the pixel size counts in resolution, not mm.
        dynamic_range: least and greatest, dB.
        gain: least and greatest, dB; at 0 the brightest half per cent is white.
        sectors: fraction of the pictures that are of a curved array.

    Example:
        >>> from invdiff.datasets.phantoms import BModePhantoms
        >>> picture = BModePhantoms(8, (64, 64), seed=1)[3]
        >>> tuple(picture.shape), bool(picture.min() >= 0), float(picture.max()) <= 255
        ((1, 64, 64), True, True)
    """

    def __init__(
        self, n: int, shape: tuple[int, int] = (256, 256), pixel_size: float = 1.8, *, seed: int = 0,
        dynamic_range: tuple[float, float] = (45.0, 70.0), gain: tuple[float, float] = (-30.0, 5.0),
        sectors: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(n, (int(shape[0]), int(shape[1])), pixel_size, seed)
        self.dynamic_range, self.gain, self.sectors = dynamic_range, gain, sectors

    def backscatter(self, rng: np.random.Generator) -> np.ndarray:
        """Local level in dB, (z, x)."""
        nz, nx = self.shape
        z, x = np.meshgrid(np.linspace(0, 1, nz), np.linspace(-0.5, 0.5, nx) * nx / nz, indexing="ij")
        level = 4 * zoom(rng.normal(size=(6, 6)), (nz / 6, nx / 6), order=3)
        bend = lambda: rng.normal(0, 0.03) + rng.normal(0, 0.1) * x + rng.normal(0, 0.15) * x**2  # noqa: E731
        for depth in np.sort(rng.uniform(0.05, 0.95, int(rng.integers(1, 5)))):
            below = z > depth + bend()
            level += below * rng.normal(0, 6)
        for _ in range(int(rng.integers(0, 5))):
            r, ratio, turn = rng.uniform(0.04, 0.15), rng.uniform(0.5, 1), rng.uniform(0, math.pi)
            p, q = _in_frame(x, z, (r, r * ratio, rng.uniform(-0.4, 0.4), rng.uniform(0.1, 0.9), turn))
            level = np.where(p * p + q * q < 1, level + rng.choice([-60.0, -60.0, -12.0, -6.0, 6.0]), level)
        for _ in range(int(rng.integers(0, 6))):
            line = np.exp(-(((z - rng.uniform(0.02, 0.95) - bend()) / rng.uniform(0.003, 0.01)) ** 2) / 2)
            window = np.exp(-(((x - rng.uniform(-0.5, 0.5)) / rng.uniform(0.1, 0.5)) ** 2) / 2)
            level = np.maximum(level, rng.uniform(10, 25) + 20 * np.log10(line * window + 1e-4))
        return level - rng.uniform(0, 25) * z

    def __getitem__(self, index: int) -> Tensor:
        rng = self.rng(index)
        level = self.backscatter(rng)
        scatterers = 10 ** (level / 20) * (rng.normal(size=self.shape) + 1j * rng.normal(size=self.shape))
        axial, lateral = rng.uniform(0.7, 1.5), rng.uniform(1.0, 3.0)
        narrow, wide = (gaussian_filter(scatterers, (axial, w)) * math.sqrt(w) for w in (lateral, 2 * lateral))
        depth = np.linspace(0, 1, self.shape[0])[:, None]
        envelope = np.abs((1 - depth) * narrow + depth * wide)
        decibels = 20 * np.log10(envelope / np.quantile(envelope, 0.995) + 1e-9) + rng.uniform(*self.gain)
        grey = 255 * (1 + decibels / rng.uniform(*self.dynamic_range)).clip(0, 1)
        if rng.random() < self.sectors:
            grey = _sector(grey, math.radians(rng.uniform(50, 150)), rng.uniform(0.05, 0.6))
            if rng.random() < 0.5:
                grey = grey[::-1].copy()
        return torch.from_numpy(grey).float()[None]


def _sector(beams: np.ndarray, opening: float, radius: float) -> np.ndarray:
    """Beams (depth, angle) over ``opening`` rad from an arc of ``radius`` (of the depth), in a picture as large."""
    nz, nx = beams.shape
    top, bottom, half = radius * math.cos(opening / 2), radius + 1, (radius + 1) * math.sin(opening / 2)
    pixel = max((bottom - top) / nz, 2 * half / nx)
    z, x = np.meshgrid(top + pixel * (np.arange(nz) + 0.5), pixel * (np.arange(nx) + 0.5 - nx / 2), indexing="ij")
    depth, angle = np.hypot(x, z) - radius, np.arctan2(x, z) / opening + 0.5
    return map_coordinates(beams, [depth * nz - 0.5, angle * nx - 0.5], order=1)
