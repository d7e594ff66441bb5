"""The autoencoder that the authors of MAD-AD publish, a pickled diffusers ``AutoencoderKL``, as a folder of safetensors."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adbench.convert import pickles
from adbench.errors import UserError

if TYPE_CHECKING:
    import torch

SCALE = 0.18215  # of the latents of KL-f8, where the file says nothing
GROUPS = 32
# Names that attention layers had in older versions of diffusers.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _current(name: str) -> str:
    name = name.removeprefix("module.")
    parts = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{parts[1]}.{RENAMED[parts[2]]}.{parts[3]}" if parts else name


def architecture(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``AutoencoderKL``: what the shapes of the tensors say, and the rest from the file's own configuration.

    Raises:
        KeyError: the tensors are not those of an ``AutoencoderKL``.
    """
    found = [re.match(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", name) for name in tensors]
    places = {(int(one[1]), int(one[2])) for one in found if one}
    levels = range(1 + max((level for level, _ in places), default=-1))
    channels = [tensors[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels]
    groups, scale = config.get("norm_num_groups"), config.get("scaling_factor")
    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "block_out_channels": channels,
        "layers_per_block": sum(level == 0 for level, _ in places),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "mid_block_add_attention": any(name.startswith("encoder.mid_block.attentions.") for name in tensors),
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
        "norm_num_groups": groups if type(groups) is int and 0 < groups <= min(channels) else GROUPS,
        "act_fn": act if (act := config.get("act_fn")) in ("silu", "swish", "relu", "gelu", "mish") else "silu",
        "scaling_factor": float(scale) if type(scale) is float and math.isfinite(scale) and scale > 0 else SCALE,
    }


def convert(file: Path, out: Path) -> dict[str, Any]:
    """Write the autoencoder in ``file`` as a folder in diffusers format that ``madad.autoencoder`` takes.

    Args:
        file: a whole ``AutoencoderKL``, or its state dict, written by ``torch.save``; only its tensors are read.
        out: the folder; must not hold anything yet.

    Returns:
        What was found: the configuration, the number of parameters and of tensors.

    Raises:
        UserError: not such a file, damaged, asking for code to be run, or ``out`` is not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name a new folder with --out.")
    contents = pickles.read(file)
    tensors = {_current(name): value for name, value in contents.tensors.items()}

    import torch
    from diffusers import AutoencoderKL

    try:
        config = architecture(tensors, contents.config)
        with torch.device("meta"):
            model: Any = AutoencoderKL(**config)
        model.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"The tensors in {file} are not those of a diffusers AutoencoderKL: {what}.") from None
    if any(not bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise UserError(f"The tensors in {file} hold NaN or infinite numbers.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)  # safetensors and config.json
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "out": str(out),
        "config": config,
        "parameters": sum(value.numel() for value in model.parameters()),
        "tensors": len(tensors),
    }
