"""What a user can get wrong around methods: each is one clear sentence, found before time is spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from memory_sets import SMALL, make_set
from test_madad import _tiny_vae

from adbench.context import Context
from adbench.errors import UserError
from adbench.methods.ae import AE
from adbench.methods.madad.method import MADAD
from adbench.methods.simple import Constant, HistEq
from adbench.methods.vae import VAE

Cli = Callable[..., tuple[int, str, str]]


def test_a_checkpoint_of_another_method_or_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    HistEq(HistEq.resolve("tiny", {}), Context()).save(tmp_path)
    with pytest.raises(UserError, match=r"holds histeq version 1, not constant version 1: fit it again"):
        Constant.load(tmp_path, Context())
    monkeypatch.setattr(HistEq, "version", "2")
    with pytest.raises(UserError, match=r"holds histeq version 1, not histeq version 2"):
        HistEq.load(tmp_path, Context())


def test_weights_of_another_network_or_damaged(tmp_path: Path) -> None:
    small = {"image_size": 32, "channels": (8,), "latent": 4, "steps": 1, "batch": 2}
    for cls, name in ((AE, "ae"), (VAE, "vae")):
        method = cls(cls.resolve("tiny", small), Context())  # type: ignore[arg-type]
        method.fit(make_set(4), None)
        method.save(tmp_path / name)
    shutil.copy(tmp_path / "ae" / "model.safetensors", tmp_path / "vae" / "model.safetensors")
    with pytest.raises(UserError, match="do not fit vae with its stored parameters"):
        VAE.load(tmp_path / "vae", Context())
    weights = tmp_path / "ae" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"is damaged .*: delete it and fit again"):
        AE.load(tmp_path / "ae", Context())
    weights.unlink()
    with pytest.raises(UserError, match=r"is not a saved ae: .*model.safetensors"):
        AE.load(tmp_path / "ae", Context())


def test_a_latent_that_the_unet_cannot_halve(tmp_path: Path) -> None:
    """Known from the parameters for an autoencoder trained here, from the folder for a pre-trained one."""
    with pytest.raises(UserError, match=r"image_size = 40 must be a multiple of 16"):
        MADAD.resolve("tiny", {**SMALL, "image_size": 40, "ae_patch": 4})
    _tiny_vae(1, tmp_path)
    params = MADAD.resolve(
        "tiny", {**SMALL, "image_size": 36, "autoencoder": str(tmp_path), "unet_multipliers": (1, 1, 1),
                 "unet_attention": (False,) * 3},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"autoencoder = .* must be a multiple of 8: the autoencoder shrinks 2 times"):
        MADAD(params, Context()).fit(make_set(4), None)


def test_a_modality_that_the_training_source_lacks(cli: Cli, slices: Path, tmp_path: Path) -> None:
    healthy = tmp_path / "healthy"
    (healthy / "train").mkdir(parents=True)
    for path in (slices / "train").glob("*-FLAIR.png"):
        shutil.copy(path, healthy / "train" / path.name.replace("train", "other").replace("FLAIR", "T1"))
    code, _, err = cli(
        "run", "--method", "zscore", "--dataset", "folder", "--data-root", str(slices), "--modality", "FLAIR",
        "--train-on", "folder", "--train-root", str(healthy), "--out", str(tmp_path / "runs"), "--device", "cpu",
    )  # fmt: skip
    assert code == 2
    said = " ".join(err.split())
    assert "FLAIR" in said.split("adbench: ")[-1]
    assert str(healthy) in said.replace(" ", "") or "healthy" in said
    assert "T1" in said.split("adbench: ")[-1]
    assert "Traceback" not in err
