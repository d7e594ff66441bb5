"""Maps of perceptual difference between a slice and its reconstruction: ``gms``, ``ssim``, ``stlpips``, ``lpips``, ``none``.

Images are (B, 1, H, W) in [0, 1], maps (B, 1, H, W), 0 where nothing differs. The first two need no weights. The module
imports torch; methods import it inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from adbench.errors import UserError
from adbench.methods.common.image_ops import gaussian_kernel
from adbench.methods.common.weights import read_weights
from adbench.utils.installed import package_file

Difference = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

GMS_CONSTANT = 170 / 255**2  # Xue et al. 2014, for images in [0, 1]
INSTALL = "pip install --no-deps stlpips-pytorch"  # only its weights are read; its dependencies are not needed


def gms(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 - gradient-magnitude similarity (Xue et al. 2014, eq. 3-4), Prewitt filters, edges repeated."""
    column = torch.arange(1, -2, -1, dtype=a.dtype, device=a.device) / 3
    kernel = torch.stack([column.expand(3, 3), column[:, None].expand(3, 3)])[:, None]

    def magnitude(image: torch.Tensor) -> torch.Tensor:
        parts = F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernel)
        return parts.square().sum(dim=1, keepdim=True).sqrt()

    x, y = magnitude(a), magnitude(b)
    return 1 - (2 * x * y + GMS_CONSTANT) / (x.square() + y.square() + GMS_CONSTANT)


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(1 - SSIM) / 2 (Wang et al. 2004): Gaussian window of 11 px and sigma 1.5 px, K = .01 and .03, edges reflected."""
    kernel = gaussian_kernel(1.5, truncate=3.34).to(a)  # radius 5
    radius = len(kernel) // 2

    def mean(image: torch.Tensor) -> torch.Tensor:
        out = F.conv2d(F.pad(image, (0, 0, radius, radius), mode="reflect"), kernel.view(1, 1, -1, 1))
        return F.conv2d(F.pad(out, (radius, radius, 0, 0), mode="reflect"), kernel.view(1, 1, 1, -1))

    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return (1 - (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))) / 2


def none(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 everywhere: the residual alone counts."""
    return torch.ones_like(a)


class _BlurPool(nn.Module):
    """A fixed smoothing filter with stride 2, the image reflected by 2 px."""

    filt: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(channels, 1, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class _Fire(nn.Module):
    """SqueezeNet's block: 1x1 squeeze, then 1x1 and 3x3 side by side."""

    def __init__(self, entries: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(entries, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


def _alexnet() -> list[list[nn.Module]]:
    """Shift-tolerant AlexNet (Ghildyal & Liu 2022) in the five stages whose features are compared."""

    def pool(channels: int) -> list[nn.Module]:
        return [nn.MaxPool2d(3, 1), _BlurPool(channels)]

    return [
        [nn.Conv2d(3, 64, 11, padding=2), _BlurPool(64), nn.ReLU()],
        [*pool(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()],
        [*pool(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
        [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
        [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()],
    ]


def _squeezenet() -> list[list[nn.Module]]:
    """SqueezeNet 1.1 (Iandola et al. 2016) in the seven stages whose features LPIPS compares."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return [
        [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU()],
        [pool(), _Fire(64, 16, 64), _Fire(128, 16, 64)],
        [pool(), _Fire(128, 32, 128), _Fire(256, 32, 128)],
        [pool(), _Fire(256, 48, 192)],
        [_Fire(384, 48, 192)],
        [_Fire(384, 64, 256)],
        [_Fire(512, 64, 256)],
    ]


class LPIPS(nn.Module):
    """Learned perceptual difference (Zhang et al. 2018), spatial: weighted squared distance of unit features, layers summed.

    Args:
        stages: the trunk; a stage's output is compared.
        widths: channels of each output.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, stages: list[list[nn.Module]], widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.weights = nn.ParameterList(torch.zeros(1, width, 1, 1) for width in widths)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = (2 * torch.cat([a, b]).expand(-1, 3, -1, -1) - 1 - self.shift) / self.scale
        total = torch.zeros_like(a)
        for stage, weight in zip(self.stages, self.weights, strict=True):
            x = stage(x)
            one, two = (x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)).chunk(2)
            layer = ((one - two).square() * weight).sum(dim=1, keepdim=True)
            total = total + F.interpolate(layer, size=a.shape[-2:], mode="bilinear", align_corners=False)
        return total


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return read_weights(path)[0]
    except UserError as error:
        raise UserError(f"No perceptual weights: {error} To have the published ones again: {INSTALL}.") from None


def _fill(model: LPIPS, tensors: list[torch.Tensor], path: Path) -> LPIPS:
    """Weights in the order of the layers; trunk first, then comparison weights."""
    targets = [value for key, value in model.state_dict().items() if key not in {"shift", "scale"}]
    if [tuple(t.shape) for t in targets] != [tuple(t.shape) for t in tensors]:
        raise UserError(f"{path} does not hold the weights of the expected network: install it again with {INSTALL}.")
    with torch.no_grad():
        for target, value in zip(targets, tensors, strict=True):
            target.copy_(value)
    return model.eval().requires_grad_(False)


def load_stlpips(otherwise: str = "choose perceptual=gms") -> LPIPS:
    """Shift-tolerant LPIPS with the AlexNet weights of the ``stlpips-pytorch`` wheel.

    Args:
        otherwise: what the user may do instead of installing it.

    Raises:
        UserError: the wheel is not installed.
    """
    path = package_file("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth")
    if path is None:
        raise UserError(f"The perceptual map stlpips needs weights that are not installed: {INSTALL}, or {otherwise}.")
    found = _read(path)
    trunk = [value for key, value in found.items() if key.startswith("net.")]
    heads = [value for key, value in found.items() if key.startswith("lin")]
    return _fill(LPIPS(_alexnet(), (64, 192, 384, 256, 256)), trunk + heads, path)


def load_lpips(otherwise: str = "choose perceptual=gms") -> LPIPS:
    """LPIPS with SqueezeNet: its comparison weights from the ``lpips`` wheel, the trunk from torch's hub folder.

    Args:
        otherwise: what the user may do instead of putting them there.

    Raises:
        UserError: one of the two files is missing; nothing is downloaded.
    """
    heads = package_file("lpips", "weights/v0.1/squeeze.pth")
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    trunk = next(iter(sorted(hub.glob("squeezenet1_1-*.pth"))), None)
    if heads is None or trunk is None:
        missing = "the lpips package" if heads is None else f"squeezenet1_1-*.pth in {hub}"
        raise UserError(
            f"The perceptual map lpips needs weights that are not there ({missing}) and downloads nothing: "
            f"put them in place, take stlpips ({INSTALL}), or {otherwise}."
        )
    body = [value for key, value in _read(trunk).items() if key.startswith("features.")]
    return _fill(LPIPS(_squeezenet(), (64, 128, 256, 384, 384, 512, 512)), [*body, *_read(heads).values()], heads)


def difference(name: str, device: str) -> Difference:
    """The map called ``name``, its weights (if any) on ``device``.

    Raises:
        UserError: weights that are not installed.
    """
    if name == "stlpips":
        return load_stlpips().to(device)
    if name == "lpips":
        return load_lpips().to(device)
    return {"gms": gms, "ssim": ssim, "none": none}[name]
