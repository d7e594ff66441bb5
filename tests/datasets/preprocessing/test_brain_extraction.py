"""Finding brains: tools of others behind one interface, and what they may do wrong."""

from __future__ import annotations

import os
import stat
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from adbench.datasets.preprocessing import brain_extraction
from adbench.errors import UserError

SHAPE = (20, 22, 18)
BALL = (np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")) ** 2).sum(axis=0) < 0.6


@pytest.fixture(autouse=True)
def _fresh() -> None:
    brain_extraction._loaded.cache_clear()


def test_background_fills_holes_and_nothing_else() -> None:
    image = np.where(BALL, 50, 0)
    image[9:12, 10:12, 8:10] = 0  # fluid that happens to be 0
    found = brain_extraction.background(image, "FLAIR", "here")
    np.testing.assert_array_equal(found, BALL)
    image[10, :11, 9] = 0  # a tunnel to the outside: not a hole
    assert not brain_extraction.background(image, "FLAIR", "here")[10, 10, 9]


def test_a_volume_that_was_padded_has_two_backgrounds() -> None:
    rng = np.random.default_rng(3)
    image = np.full((30, 28, 26), -0.5, np.float32)
    brain = np.zeros(image.shape, bool)
    brain[9:21, 8:20, 7:19] = True
    image[brain] = rng.normal(1, 0.2, brain.sum())
    for margin in ((0, 0), (1, 5), (40, 40)):  # the last one longer than the step of the sample
        padded, inside = np.pad(image, margin), np.pad(brain, margin)
        assert brain_extraction.background_values(padded) == ((0, -0.5) if any(margin) else (-0.5,))
        np.testing.assert_array_equal(brain_extraction.background(padded, "FLAIR", "case 7"), inside)
        assert brain_extraction.background_share(padded) == pytest.approx(1 - inside.mean())
    assert brain_extraction.background_values(np.where(brain, image, 0)) == (0,)  # tissue of many values


def test_bounds() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[3:7, 5, 9:18] = True
    assert brain_extraction.bounds(mask) == (slice(3, 7), slice(5, 6), slice(9, 18))
    assert brain_extraction.bounds(np.zeros(SHAPE, bool)) is None


def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, names: tuple[str, ...] = ("mine",)) -> None:
    (tmp_path / "my_brains.py").write_text("import numpy as np\n" + textwrap.dedent(body))
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        EntryPoint(name, f"my_brains:{find}", brain_extraction.GROUP)
        for name, find in zip(names, ("find", "other"), strict=False)
    ]
    monkeypatch.setattr(
        brain_extraction, "entry_points", lambda group: points if group == brain_extraction.GROUP else []
    )
    sys.modules.pop("my_brains", None)


def test_a_plug_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plugin(
        monkeypatch,
        tmp_path,
        "def find(image, affine, modality):\n    assert modality == 'T2'\n    return (image > 10).astype(int)",
    )
    found = brain_extraction.extract("mine", np.where(BALL, 50, 3), np.eye(4), "T2", "here")
    assert found.dtype == bool
    np.testing.assert_array_equal(found, BALL)
    before = brain_extraction.tool("mine").version
    assert before == brain_extraction.tool("mine").version
    with open(tmp_path / "my_brains.py", "a") as file:
        file.write("\n# edited\n")
    assert brain_extraction.tool("mine").version != before, "or masks of another tool would be taken from the cache"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def find(*_): return np.ones((2, 2, 2))", r"case 7: mine gave a mask of shape \(2, 2, 2\)"),
        ("def find(image, *_): return np.zeros(image.shape)", "case 7: mine found no brain"),
        ("def find(*_): raise RuntimeError('no luck')", "case 7: mine failed with RuntimeError: no luck"),
        ("import nowhere_to_be_found", "'mine' cannot be loaded .*ModuleNotFoundError"),
        ("raise SystemExit(3)", "'mine' cannot be loaded .*SystemExit"),
    ],
)
def test_a_plug_in_that_misbehaves_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, message: str
) -> None:
    plugin(monkeypatch, tmp_path, body)
    with pytest.raises(UserError, match=message):
        brain_extraction.extract("mine", np.ones(SHAPE), np.eye(4), "T1", "case 7")


def test_two_claims_and_no_claim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plugin(monkeypatch, tmp_path, "def find(*_): ...\ndef other(*_): ...", ("mine", "mine"))
    with pytest.raises(UserError, match="'mine' is claimed by"):
        brain_extraction.tool("mine")
    with pytest.raises(UserError, match=r"Unknown brain extraction 'deepbat'\. Did you mean 'deepbet'"):
        brain_extraction.tool("deepbat")


def test_a_tool_for_t1_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brain_extraction, "find_spec", lambda _: True)
    with pytest.raises(UserError, match=r"deepbet finds the brain on T1 only.*--set dataset\.brain=hd-bet or template"):
        brain_extraction.extract("deepbet", np.ones(SHAPE), np.eye(4), "T2", "case 7")


def test_the_program_hd_bet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in that takes hd-bet 2's arguments and thresholds the image."""
    program = tmp_path / "hd-bet"
    program.write_text(
        textwrap.dedent(
            f"""\
            #!{sys.executable}
            import sys, numpy as np, nibabel
            given = sys.argv[1:]
            assert "--save_bet_mask" in given and given[given.index("-device") + 1] == "cpu", given
            image = nibabel.load(given[given.index("-i") + 1])
            out = given[given.index("-o") + 1]
            if image.affine[0, 3] == 7: sys.exit("no memory")
            mask = (np.asarray(image.dataobj) > 10).astype("uint8")
            nibabel.Nifti1Image(mask, image.affine).to_filename(out[:-7] + "_bet.nii.gz")
            """
        )
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(brain_extraction, "find_spec", lambda _: None)
    found = brain_extraction.extract("hd-bet", np.where(BALL, 50, 3), np.eye(4), "T2", "case 7")
    np.testing.assert_array_equal(found, BALL)
    far = np.eye(4)
    far[0, 3] = 7
    with pytest.raises(UserError, match="hd-bet ended with code 1: no memory"):
        brain_extraction.extract("hd-bet", np.where(BALL, 50, 3), far, "T2", "case 7")


def test_automatic_takes_the_first_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brain_extraction, "find_spec", lambda name: name == "deepbet")
    assert brain_extraction.automatic() == "deepbet"
    monkeypatch.setattr(brain_extraction, "find_spec", lambda _: None)
    monkeypatch.setattr(brain_extraction.shutil, "which", lambda name: "/bin/hd-bet" if name == "hd-bet" else None)
    assert brain_extraction.automatic() == "hd-bet"
    monkeypatch.setattr(brain_extraction.shutil, "which", lambda _: None)
    assert brain_extraction.automatic() == "template"
