"""Parameters that name files: what keys and records hold of them, and what finds the files again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest

from adbench.methods.ensemble import Ensemble
from adbench.methods.features import Features
from adbench.methods.madad.method import MADAD
from adbench.methods.reflect import Reflect
from adbench.params import ParamSet, param
from adbench.utils.named_files import NamesFile, given_values, names_files, shown_values


class Own(ParamSet):
    """As a plug-in may have them."""

    atlas: Annotated[str, NamesFile(("built-in", ""))] = param("built-in", "A file.")
    width: int = param(3, "A number.")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("~/secret/patients", "patients"),
        ("./tex/a", "a"),
        ("tex/a/", "a"),
        ("/data/of/jane/b.pth", "b.pth"),
        ("owner/name", "name"),
        ("/data/built-in", "./built-in"),
        ("./built-in", "./built-in"),
        ("built-in", "built-in"),
        ("", ""),
    ],
)
def test_the_last_part_of_a_path_is_shown(given: str, shown: str) -> None:
    params = Own(atlas=given)
    assert params.json_values == {"atlas": shown, "width": 3}
    assert given_values(params) == {"atlas": given}
    assert Own(**params.json_values).json_values == params.json_values, "what is shown is shown as it is"
    assert (
        names_files(Own, params.json_values)
        == names_files(Own, given_values(params))
        == (shown not in ("", "built-in"))
    )


def test_a_folder_by_dots_has_the_name_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "atlas" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "atlas" / "inner")
    assert [Own(atlas=text).json_values["atlas"] for text in (".", "..", "../../atlas")] == ["inner", "atlas", "atlas"]


def test_an_id_of_the_hub_stays_unless_it_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = MADAD.resolve("base", {"autoencoder": "owner/vae-1.0"})
    assert params.model_dump(mode="json")["autoencoder"] == "owner/vae-1.0"
    (tmp_path / "owner" / "vae-1.0").mkdir(parents=True)
    assert params.model_dump(mode="json")["autoencoder"] == "vae-1.0"


def test_no_method_shows_a_path() -> None:
    named = [
        Reflect.resolve("tiny", {"texture": "pictures", "textures": "/data/jane/tex", "autoencoder": "~/jane/fit"}),
        Features.resolve("tiny", {"weights": "/data/jane/w.pth"}),
        Ensemble.resolve("tiny", {"members": ["features weights=/data/jane/my w.pth sigma=3", "histeq"]}),
    ]
    for params in named:
        assert "jane" not in params.json_text
        assert "jane" in str(given_values(params))
        again = type(params)(**params.json_values)
        assert again.json_text == params.json_text
    assert named[2].json_values["members"] == ["features weights=my w.pth sigma=3", "histeq"]
    assert Ensemble.resolve("tiny", {}).json_values["members"] == ["dae", "dae", "dae"]
    assert shown_values(Features.Params, {"weights": "/data/jane/w.pth", "sigma": 2}) == {
        "weights": "w.pth",
        "sigma": 2,
    }
