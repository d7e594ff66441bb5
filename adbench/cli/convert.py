"""``adbench convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adbench.cli.app import Json, app

group = typer.Typer(help="Turn files of other projects into ones that adbench reads.", no_args_is_help=True)
app.add_typer(group, name="convert")


@group.command(
    "madad-vae",
    epilog="Example:\n\n  adbench convert madad-vae vae.pt --out madad-vae\n\n"
    "  adbench run --method madad --set madad.autoencoder=madad-vae --set madad.ae_steps=0 --dataset phantom --preset base",
)
def madad_vae(
    file: Annotated[Path, typer.Argument(help="The published file: a pickled AutoencoderKL, or its state dict.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for config.json and safetensors.")],
    json_: Json = False,
) -> None:
    """Take the tensors out of a pickled autoencoder of MAD-AD; nothing in the file is executed."""
    from adbench.convert.madad_vae import convert
    from adbench.utils.console import print_json, say

    found = convert(file, out)
    if json_:
        print_json(found)
        return
    config = found["config"]
    say(
        f"{found['tensors']} tensors, {found['parameters'] / 1e6:.2f} M parameters: {config['in_channels']} channel(s) in, "
        f"{config['latent_channels']} in the latent, {2 ** (len(config['block_out_channels']) - 1)} times smaller."
    )
    say(f"Use it with --set madad.autoencoder={out}")
