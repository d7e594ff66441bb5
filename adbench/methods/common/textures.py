"""Pictures that serve as textures, those of a user's folder and drawn ones, and the fillings of objects that are made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adbench.errors import UserError

if TYPE_CHECKING:
    import torch

OTHER_PICTURES = (".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
FAINTEST = 2 / 255  # between the darkest and the brightest of a picture's pixels: less is no texture


def _files(folder: Path) -> Iterator[Path]:
    """The files below ``folder`` by name, without hidden ones and what macOS packs beside files."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(".") or part == "__MACOSX" for part in parts) and path.is_file():
            yield path


def pictures_of(folder: Path) -> list[Path]:
    """The PNG pictures below ``folder``, by name, their headers read.

    Raises:
        FileError: one is none, or larger than is read.
    """
    from adbench.datasets.io import png

    found = [path for path in _files(folder) if path.suffix.lower() == ".png"]
    for path in found:
        png.read_shape(path)
    return found


def left_out(folder: Path) -> int:
    """How many pictures of other kinds, which are not read, lie below ``folder``."""
    return sum(path.suffix.lower() in OTHER_PICTURES for path in _files(folder))


def read(paths: Sequence[Path], side: int) -> torch.Tensor:
    """(M, 1, ``side``, ``side``) float16 in [0, 1], grey; of 16-bit pictures the largest of the bits that all use is white.

    Raises:
        FileError: unreadable, or colour.
        UserError: one shows nothing, or is transparent.
    """
    import torch

    from adbench.datasets.io import png
    from adbench.methods.common import image_ops

    brightest = max(map(png.largest_of_16_bits, paths))
    white = (1 << brightest.bit_length()) - 1 if brightest else 65535
    found = []
    for path in paths:
        grey = torch.from_numpy(png.read_image(path, white))
        if _is_transparent(path):
            raise UserError(
                f"{path} is transparent in places, where its grey values are hidden: save it without transparency."
            )
        if float(grey.max() - grey.min()) < FAINTEST:
            raise UserError(
                f"{path} has the grey value {float(grey.mean()):.2g} (of 0 to 1) all over, which is no texture: take it out of "
                "the folder."
            )
        found.append(image_ops.resize(grey[None, None], (side, side)).half())
    return torch.cat(found)


def _is_transparent(path: Path) -> bool:
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as image:  # which png.read_image has checked
        if not image.has_transparency_data:
            return False
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return float(lowest) < 255  # type: ignore[arg-type]


def drawn(side: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """(2 ``count``, 1, ``side``, ``side``) in [0, 1]: simplex noise, and gratings of any angle, half to a 32nd of the side wide."""
    import torch

    from adbench.methods.common import noise

    waves = noise.simplex(count, (side, side), generator, noise.Simplex(wavelength=side / 2))
    angle, wavelength, phase = torch.rand((3, count, 1, 1, 1), generator=generator)
    angle, wavelength = 3.1416 * angle, side * 2.0 ** (-4 * wavelength - 1)
    axis = torch.arange(side)
    along = axis[:, None] * angle.sin() + axis * angle.cos()
    gratings = (6.2832 * (along / wavelength + phase)).sin()
    return (0.5 + 0.25 * torch.cat([waves, gratings])).clamp(0, 1)


def fillings(
    count: int,
    shape: tuple[int, ...],
    bank: torch.Tensor | None,
    share: float,
    generator: torch.Generator,
    own: tuple[torch.Tensor, int] | None = None,
) -> torch.Tensor:
    """What objects are filled with: ``√α b + √(1-α) n`` with α ~ U(0, 1), or a texture.

    Args:
        count: N, objects.
        shape: (C, h, w) of a latent.
        bank: (M, C, h, w) latents of textures, of which one is taken and rolled; None: all have noise.
        share: of objects that have a texture.
        generator: a CPU generator.
        own: (N,) slices that the objects lie in and how many slices there are, where the bank is made of their latents, one
            copy of all after the other; an object is then filled with another slice.

    Returns:
        (N, C, h, w); noise has variance 1, and two cells of a channel have the correlation α.
    """
    import torch

    from adbench.methods.common.noise import with_offset

    channels, height, width = shape
    white = torch.randn((count, *shape), generator=generator)
    offset = torch.randn((count, channels, 1, 1), generator=generator)
    noise = with_offset(white, offset, torch.rand(count, generator=generator), 1.0)
    if bank is None:
        return noise
    if own is None:
        chosen = torch.randint(len(bank), (count,), generator=generator)
    else:
        at, slices = own
        chosen = (at + torch.randint(1, slices, (count,), generator=generator)) % slices
        chosen = chosen + slices * torch.randint(len(bank) // slices, (count,), generator=generator)
    rolled = torch.rand((count, 2), generator=generator) * torch.tensor([height, width])
    rows = (torch.arange(height) + rolled[:, :1].long()) % height
    columns = (torch.arange(width) + rolled[:, 1:].long()) % width
    where = [part.to(bank.device) for part in (chosen[:, None, None], rows[:, :, None], columns[:, None, :])]
    textures = bank[where[0], :, where[1], where[2]].movedim(-1, 1)
    textured = torch.rand((count, 1, 1, 1), generator=generator) < share
    return torch.where(textured.to(bank.device), textures, noise.to(bank.device))
