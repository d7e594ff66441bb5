"""Random training masks over latent cells. 1 means noised (anomalous) everywhere in this package."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adbench.methods.common.image_ops import shrink


def allowed_cells(brain: torch.Tensor, grid: tuple[int, int], block: int = 16, share: float = 0.9) -> torch.Tensor:
    """Latent cells that may be noised: those of picture blocks that are nearly all brain (official code of MAD-AD).

    Args:
        brain: (B, 1, H, W) bool on the grid of the autoencoder's input.
        grid: (h, w) latent cells.
        block: side of a block in px.
        share: smallest mean of the brain mask over a block.

    Returns:
        (B, 1, h, w) bool. A cell smaller than a block follows its block; a cell larger than one follows its own mean.
    """
    size = brain.shape[-2:]
    blocks = (max(1, size[0] // block), max(1, size[1] // block))
    blocks = (min(blocks[0], grid[0]), min(blocks[1], grid[1]))
    mean = torch.nn.functional.adaptive_avg_pool2d(brain.float(), blocks)
    return torch.nn.functional.interpolate(mean, size=grid, mode="nearest") >= share


def cell_shares(brain: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Share of brain in every latent cell, (B, 1, h, w) in [0, 1]."""
    return shrink(brain.float(), grid)


def random_masks(
    allowed: torch.Tensor,
    generator: torch.Generator,
    *,
    largest_share: float = 0.4,
    sizes: Sequence[int] = (1, 2, 4, 8),
    probabilities: Sequence[float] = (0.2, 0.3, 0.3, 0.2),
    per_batch: bool = False,
) -> torch.Tensor:
    """One random mask a sample: the grid is cut into rectangles and a share of them, drawn at random, is noised.

    Args:
        allowed: (B, 1, h, w) bool, cells that may be noised (:func:`allowed_cells`); others stay 0 whatever is drawn.
        generator: CPU generator of every draw.
        largest_share: the noised share of a sample's rectangles is uniform in [0, ``largest_share``].
        sizes: rectangle heights and widths in cells, drawn independently of each other ...
        probabilities: ... with these probabilities.
        per_batch: one rectangle size for the whole batch, as in the official code, instead of one a sample.

    Returns:
        (B, 1, h, w) float32 on the device of ``allowed``: 1 noised, 0 clean.
    """
    count, _, height, width = allowed.shape
    draws = 1 if per_batch else count
    weights = torch.tensor(probabilities, dtype=torch.float64)
    choices = torch.tensor(list(sizes))
    sides = choices[torch.multinomial(weights, 2 * draws, replacement=True, generator=generator)].view(draws, 2)
    sides = sides.expand(count, 2)
    share = torch.rand(count, generator=generator) * largest_share
    luck = torch.rand((count, height * width), generator=generator)
    tiles = (torch.tensor([height, width]) + sides - 1) // sides  # tiles down and across, (B, 2)
    total = tiles.prod(dim=1)
    luck[torch.arange(height * width)[None] >= total[:, None]] = 2.0  # places beyond the last tile
    rank = luck.argsort(dim=1).argsort(dim=1)
    noised = rank < (share * total + 0.5).floor()[:, None]
    rows = torch.arange(height)[None, :, None] // sides[:, 0, None, None]
    columns = torch.arange(width)[None, None, :] // sides[:, 1, None, None]
    tile = rows * tiles[:, 1, None, None] + columns
    mask = noised.gather(1, tile.view(count, -1)).view(count, 1, height, width)
    return mask.float().to(allowed.device) * allowed
