"""The converter of pickled autoencoders: equal numbers from honest files, one sentence and no execution from others."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Cli = Callable[..., tuple[int, str, str]]
SCRIPT = Path(__file__).parents[2] / "examples" / "convert_madad_vae.py"
spec = importlib.util.spec_from_file_location("convert_madad_vae", SCRIPT)
assert spec is not None
assert spec.loader is not None
script: Any = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
spec.loader.exec_module(script)
ConversionError, convert, read = script.ConversionError, script.convert, script.read


def run(*arguments: object) -> tuple[int, str, str]:
    """The script as a user runs it, in a process of its own."""
    done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def autoencoder(**other: Any) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    config = {
        "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    } | other  # fmt: skip
    return AutoencoderKL(**config).eval()


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize(
    "other", [{}, {"scaling_factor": 0.3, "mid_block_add_attention": False, "use_quant_conv": False, "act_fn": "gelu"}]
)
def test_pickled_module_keeps_its_function(tmp_path: Path, modern: bool, other: dict[str, Any]) -> None:
    from diffusers import AutoencoderKL

    vae = autoencoder(**other)
    torch.save(vae, tmp_path / "vae.pt", _use_new_zipfile_serialization=modern)
    found = convert(tmp_path / "vae.pt", tmp_path / "out")
    again: Any = AutoencoderKL.from_pretrained(tmp_path / "out", use_safetensors=True)
    image = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(vae.encode(image).latent_dist.mean, again.encode(image).latent_dist.mean)
        assert torch.equal(vae(image).sample, again(image).sample)
    assert again.config.scaling_factor == other.get("scaling_factor", 0.18215)
    assert found["parameters"] == sum(p.numel() for p in vae.parameters())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert not list(tmp_path.glob(".*"))


def test_state_dict_with_names_of_older_versions(tmp_path: Path) -> None:
    """Halves, a wrapper's prefix, views into one storage, the older names of attention layers."""
    vae = autoencoder(norm_num_groups=8)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = {}
    for name, value in vae.state_dict().items():
        for new, former in old.items():
            name = name.replace(new, former)
        state[f"module.{name}"] = value.half()
    weight = state["module.encoder.conv_in.weight"]
    state["module.encoder.conv_in.weight"] = torch.stack([weight, weight + 1], -1)[..., 0]  # strided
    torch.save(state, tmp_path / "vae.pt")
    contents = read(tmp_path / "vae.pt")
    assert contents.named == ""
    assert all(torch.equal(contents.tensors[name], value) for name, value in state.items())
    with pytest.raises(ConversionError, match="not those of a diffusers AutoencoderKL"):
        convert(tmp_path / "vae.pt", tmp_path / "out")  # 8 and 16 channels do not make 32 groups
    wide = autoencoder(block_out_channels=(32, 64), norm_num_groups=32)
    torch.save(wide.half().state_dict(), tmp_path / "wide.pt")
    assert convert(tmp_path / "wide.pt", tmp_path / "out")["config"]["norm_num_groups"] == 32


def test_converted_folder_trains_madad(tmp_path: Path, slices: Path, cli: Cli) -> None:
    torch.save(autoencoder(), tmp_path / "vae.pt")
    code, out, err = run(tmp_path / "vae.pt", "--out", tmp_path / "vae")
    assert (code, err) == (0, "")
    assert "4 in the latent, 2 times smaller" in out
    sets = {
        "autoencoder": tmp_path / "vae", "ae_steps": 0, "steps": 2, "batch": 2, "image_size": 32, "augmented_copies": 0,
        "unet_multipliers": "[1, 1]",
    }  # fmt: skip
    code, out, err = cli(
        "run", "--method", "madad", "--dataset", "folder", "--data-root", str(slices), "--out", str(tmp_path / "runs"),
        "--device", "cpu", "--json", *(f"--set=madad.{key}={value}" for key, value in sets.items()),
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["boards"][0]["rows"][0]["method"] == "madad"


class Payload:
    """Unpickled as pickles usually are, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def rewritten(source: Path, target: Path, pickled: bytes | None = None, drop: str = "", cut: str = "") -> Path:
    """A copy of an archive of torch with another pickle, without an entry, or with one cut short."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("/data.pkl") and pickled is not None:
                data = pickled
            if entry.filename.endswith(cut or "\0"):
                data = data[:-4]
            if not entry.filename.endswith(drop or "\0"):
                new.writestr(entry.filename, data)
    return target


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("hidden", ["root", "attribute", "weight"])
def test_payload_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], modern: bool, hidden: str
) -> None:
    struck, vae = tmp_path / "struck", autoencoder()
    content: Any = Payload(struck)
    if hidden == "attribute":
        vae.note = content
        content = vae
    elif hidden == "weight":
        content = OrderedDict(vae.state_dict(), extra=content)
    torch.save(content, tmp_path / "vae.pt", _use_new_zipfile_serialization=modern)
    torch.load(tmp_path / "vae.pt", weights_only=False)
    assert struck.exists()  # the payload is sharp
    struck.unlink()
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "vae.pt"), "--out", str(tmp_path / "out")])
    assert script.main() == 2
    err = capsys.readouterr().err
    assert "is refused: it asks for posix.system" in " ".join(err.split())
    assert "Traceback" not in err
    assert not struck.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\neval\n(V1\ntR.",
        b"cos\nsystem\n(Vtrue\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x0c__import__\x94\x93\x8c\x02os\x85R.",  # STACK_GLOBAL
        b"(S'true'\nios\nsystem\n.",  # INST
        b"\x80\x02\x82\x01.",  # an extension code
        b"cdiffusers.models\n__builtins__\n(tR.",  # a stand-in, harmless and without tensors
        b"ctorch.serialization\nload\n(tR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(I1\nI2\nI3\nI4\ntR.",
        b"(lp0\ng0\na.",
        b"\x80\x02" + b"]" * 50 + b".",
        b"",
    ],
)
def test_strange_programs_are_one_sentence(tmp_path: Path, program: bytes) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(ConversionError, match=r"refused|cannot be read|holds no tensor"):
        read(rewritten(tmp_path / "a.pt", tmp_path / "b.pt", program))
    (tmp_path / "c.pt").write_bytes(program)
    with pytest.raises(ConversionError, match=r"refused|cannot be read|holds no tensor"):
        read(tmp_path / "c.pt")


def test_tensors_beyond_their_data_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(6)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        honest = archive.read(name)
    for size, stride in ((7, 1), (4, 2), (-1, 1), (6, 10**9), (10**12, 0)):
        text = f"I0\n(I{size}\ntp9\n(I{stride}\nt".encode()
        storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI6\ntQ"
        program = b"(Va\nctorch._utils\n_rebuild_tensor_v2\n(" + storage + text + b"I00\nNtRd."
        with pytest.raises(ConversionError, match="reaches beyond its data"):
            read(rewritten(tmp_path / "a.pt", tmp_path / "b.pt", program))
    assert honest.startswith(b"\x80")
    for change, message in (({"drop": "data/0"}, "storage 0 is missing"), ({"cut": "data/0"}, "another size")):
        with pytest.raises(ConversionError, match=message):
            read(rewritten(tmp_path / "a.pt", tmp_path / "b.pt", **change))


def test_a_few_modules_that_stand_for_endless_ones_are_refused(tmp_path: Path) -> None:
    node: Any = torch.nn.Linear(1, 1)
    for _ in range(40):
        parent = torch.nn.Module()
        parent.a = parent.b = node
        node = parent
    torch.save(node, tmp_path / "a.pt")
    with pytest.raises(ConversionError, match="more numbers than the file holds"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("modern", [True, False])
def test_cut_files_are_one_sentence(tmp_path: Path, modern: bool) -> None:
    torch.save(autoencoder(), tmp_path / "vae.pt", _use_new_zipfile_serialization=modern)
    whole = (tmp_path / "vae.pt").read_bytes()
    for share in (0.0, 0.001, 0.3, 0.9, 0.9999):
        (tmp_path / "cut.pt").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ConversionError, match=r"cut\.pt cannot be read as a file of torch.save|is refused"):
            read(tmp_path / "cut.pt")


def test_other_files_and_places_are_one_sentence(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    torch.save(autoencoder(), tmp_path / "vae.pt")
    bad = autoencoder()
    with torch.no_grad():
        bad.encoder.conv_in.weight[0] = float("nan")
    torch.save(bad, tmp_path / "nan.pt")
    for name, out, message in (
        ("other.pt", "out", "not those of a diffusers AutoencoderKL"),
        ("pickle.pt", "out", "not written by torch.save"),
        ("none.pt", "out", "There is no file"),
        ("full", "out", "is a folder"),
        ("vae.pt", "full", "is there already"),
        ("nan.pt", "out", "NaN"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert(tmp_path / name, tmp_path / out)
    assert not (tmp_path / "out").exists()


def test_the_old_command_names_the_script(cli: Cli) -> None:
    code, _, err = cli("convert", "madad-vae", "vae.pt", "--out", "vae")
    assert code == 2
    assert "python examples/convert_madad_vae.py vae.pt --out madad-vae" in " ".join(err.split())
