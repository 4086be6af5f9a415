"""Learned perceptual distance, from a local weights file: nothing is downloaded.

Zhang, Isola, Efros, Shechtman, Wang: "The unreasonable effectiveness of deep features as a perceptual metric", CVPR
2018, arXiv 1801.03924, equation 1; version 0.1 of the released weights, AlexNet. Trained on what people see in natural
photographs: of medical images it says little, and no reading of one should rest on it.

Where the network can be reached, the authors' package writes the file::

    torch.save(lpips.LPIPS(net="alex").state_dict(), "lpips_alex.pth")
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

# AlexNet's five convolutions, (name in the file, output channels, input channels, kernel, stride, padding); the
# second and third follow a 3 x 3 maximum over strides of 2.
_LAYERS = (
    ("net.slice1.0", 64, 3, 11, 4, 2),
    ("net.slice2.3", 192, 64, 5, 1, 2),
    ("net.slice3.6", 384, 192, 3, 1, 1),
    ("net.slice4.8", 256, 384, 3, 1, 1),
    ("net.slice5.10", 256, 256, 3, 1, 1),
)


class LPIPS:
    """``LPIPS("lpips_alex.pth")(x, reference, data_range=1.0)``: 0 for equal images, less is better.

    Args:
        weights: the state dict of the authors' ``lpips.LPIPS(net="alex")``, as ``.safetensors`` or as a file of
            ``torch.save``; read without running any code in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else; missing, unexpected and misshapen entries are named.

    Example:
        >>> from invdiff.evaluation.lpips import LPIPS
        >>> distance = LPIPS("lpips_alex.pth")  # doctest: +SKIP
        >>> distance(torch.rand(3, 64, 64), torch.rand(3, 64, 64), data_range=1.0)  # doctest: +SKIP
    """

    def __init__(self, weights: str | Path) -> None:
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"There is no LPIPS weights file {path}; see help(invdiff.evaluation.lpips).")
        state = _read(path)
        state = {k: v for k, v in state.items() if not k.startswith("lins.")}  # a second copy of lin0 .. lin4
        shapes: dict[str, tuple[int, ...]] = {f"scaling_layer.{k}": (1, 3, 1, 1) for k in ("shift", "scale")}
        for i, (name, out, into, kernel, _, _) in enumerate(_LAYERS):
            shapes |= {f"{name}.weight": (out, into, kernel, kernel), f"{name}.bias": (out,)}
            shapes |= {f"lin{i}.model.1.weight": (1, out, 1, 1)}
        wrong = sorted(
            k for k in shapes.keys() | state.keys() if tuple(getattr(state.get(k), "shape", ())) != shapes.get(k)
        )
        if wrong:
            raise ValueError(
                f"{path} is not the state dict of lpips.LPIPS(net='alex'): missing, unexpected or of a wrong shape are "
                f"{', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}."
            )
        self.weights = path
        self._state = {k: v.float() for k, v in state.items()}

    def __call__(self, x: Tensor, reference: Tensor, *, data_range: float) -> float:
        """Distance of two images (1 or 3, y, x), grey or red-green-blue, of at least 32 x 32.

        Args:
            data_range: the value that is white, in the images' units; 0 is black.
        """
        if x.shape != reference.shape or x.ndim != 3 or x.shape[0] not in (1, 3) or min(x.shape[1:]) < 32:
            raise ValueError(
                f"Expected two images (1 or 3, y, x) of at least 32 x 32, got {tuple(x.shape)} and "
                f"{tuple(reference.shape)}."
            )
        if not (math.isfinite(data_range) and data_range > 0):
            raise ValueError(f"data_range must be positive and finite, got {data_range}.")
        pair = 2 * torch.stack([x, reference]).detach().cpu().float() / data_range - 1
        if not pair.isfinite().all():
            raise ValueError("x or reference has values that are not finite.")
        w = self._state
        h = (pair.expand(-1, 3, -1, -1) - w["scaling_layer.shift"]) / w["scaling_layer.scale"]
        distance = 0.0
        for i, (name, _, _, _, stride, padding) in enumerate(_LAYERS):
            if i in (1, 2):
                h = F.max_pool2d(h, 3, 2)
            h = F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding).relu()
            unit = h / (h.norm(dim=1, keepdim=True) + 1e-10)
            distance += float(F.conv2d((unit[:1] - unit[1:]).square(), w[f"lin{i}.model.1.weight"]).mean())
        return distance


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a file of tensors written by torch.save: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict.")
    return state
