"""Sweeps: which values are an axis, which cells they give, and that a resolved file gives the same cells again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest

from adbench.config import labels, registry, run_config, sweep, yaml_text
from adbench.config.cell import Cell, changed
from adbench.errors import UserError
from adbench.leaderboard import submission
from adbench.params import ParamSet, param
from adbench.results.names import row_names


class Params(ParamSet):
    size: float = param(1.0, "A number.", ge=0)
    kind: Literal["auto", "dark"] = param("auto", "A choice.")
    name: str = param("", "Any text.")
    levels: tuple[int, ...] = param((1,), "A list.")
    limit: int | None = param(None, "A number or none.")


@pytest.mark.parametrize(
    ("values", "points"),
    [
        ({"size": [2, 4]}, [{"size": 2}, {"size": 4}]),
        ({"size": "2, .5"}, [{"size": 2}, {"size": 0.5}]),
        ({"size": [2, 2]}, [{"size": 2}]),
        ({"limit": [None, 3]}, [{"limit": None}, {"limit": 3}]),
        ({"kind": "auto,dark"}, [{"kind": "auto"}, {"kind": "dark"}]),
        ({"name": "a,b"}, [{"name": "a,b"}]),  # any text is one value
        ({"name": ["a", "b"]}, [{"name": "a"}, {"name": "b"}]),
        ({"levels": [1, 2]}, [{"levels": [1, 2]}]),  # a list is the value
        ({"levels": "1,2"}, [{"levels": "1,2"}]),  # by commas too
        ({"levels": [1, "x"]}, [{"levels": [1, "x"]}]),  # and so is one with a mistake, which is then named
        ({"levels": [[1, 2], [3]]}, [{"levels": [1, 2]}, {"levels": [3]}]),
        (
            {"size": [1, 2], "kind": ["auto", "dark"]},
            [{"size": s, "kind": k} for s in (1, 2) for k in ("auto", "dark")],
        ),
        ({"sizee": [1, 2]}, [{"sizee": [1, 2]}]),  # named as unknown later
        ({}, [{}]),
    ],
)
def test_what_is_an_axis(values: dict[str, Any], points: list[dict[str, Any]]) -> None:
    assert sweep.variants(Params, "method m", values, yaml_text.parse_yaml) == points


def test_sweeps_without_values_or_without_end() -> None:
    with pytest.raises(UserError, match="method m: size = \\[\\] has no value"):
        sweep.variants(Params, "method m", {"size": []}, yaml_text.parse_yaml)
    with pytest.raises(UserError, match="40000 combinations"):
        sweep.variants(Params, "m", {"size": list(range(200)), "limit": list(range(200))}, yaml_text.parse_yaml)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"size": None}, "method m: size has no value: write one"),
        ({"kind": ""}, "method m: kind has no value: write one"),
        ({"size": "1,,2"}, "method m: size = '1,,2' has a comma without a value"),
        ({"kind": "auto, "}, "method m: kind = 'auto, ' has a comma without a value"),
        ({"levels": "1,,2"}, "method m: levels = '1,,2' has a comma without a value"),
    ],
)
def test_no_value_is_dropped(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        sweep.variants(Params, "method m", values, yaml_text.parse_yaml)


def test_an_empty_value_is_kept_where_it_is_one() -> None:
    values = {"name": "", "limit": None}
    assert sweep.variants(Params, "method m", values, yaml_text.parse_yaml) == [values]
    assert sweep.variants(Params, "m", {"name": "a,,b"}, yaml_text.parse_yaml) == [{"name": "a,,b"}]


def cells(*sets: str, method: str = "histeq") -> list[Cell]:
    flags = {"method": method, "dataset": "phantom", "device": "cpu"}
    return run_config.cells(run_config.load(None, flags, list(sets)))


def test_every_combination_is_a_cell_with_a_name() -> None:
    found = cells("histeq.sigma=2,4", "dataset.n_train=3,5", method="histeq,zscore")
    assert [cell.label for cell in found] == [
        f"{name} n_train={count} phantom FLAIR seed 0"
        for count in (3, 5)
        for name in ("histeq [tiny] sigma=2", "histeq [tiny] sigma=4", "zscore [tiny]")
    ]
    assert Cell.from_json(found[0].to_json()).label == found[0].label


def test_the_resolved_file_gives_the_same_cells() -> None:
    flags = {"method": "histeq", "dataset": "phantom", "device": "cpu"}
    config = run_config.load(None, flags, ["histeq.sigma=[2, 4]", "dataset.kinds=[[ms], [ms, stroke]]"])
    found = run_config.cells(config)
    assert len(found) == 4
    again = run_config.cells(run_config.resolved(found, config))
    assert [cell.key for cell in again] == [cell.key for cell in found]
    for cell in found:  # and so does that of each run
        assert [one.key for one in run_config.cells(run_config.from_cell(cell))] == [cell.key]


def test_a_mistake_in_a_sweep_names_the_value() -> None:
    with pytest.raises(UserError, match="histeq: sigma = -1 is not valid"):
        cells("histeq.sigma=2,-1")


def test_what_is_changed_is_told_from_defaults() -> None:
    found = changed(cells("histeq.sigma=2,4", "histeq.polarity=auto", "dataset.n_test=7"))
    assert {scope: set(own) for scope, own in found.items()} == {
        "histeq": {"sigma"},
        "dataset": {"n_test"},
        "post": set(),
    }
    assert changed(cells("post.median=3"))["post"] == {"median": ([3], 0)}
    assert changed(cells("post.sigma=2"))["post"] == {"sigma": ([2.0], 0.0)}
    assert found["histeq"]["sigma"] == ([2.0, 4.0], 3.0)


def test_values_in_names() -> None:
    values = {"a": 2.0, "b": 1e-4, "c": (1, 2), "d": None, "e": True, "f": "/some/long/path/to/a/folder/of/weights"}
    assert sweep.params_text(values).startswith("a=2 b=0.0001 c=1,2 d=none e=true f=…")
    assert sweep.params_text({str(i): i for i in range(20)}).endswith("7=7 and 12 more")
    assert sweep.params_text({"steps": 3, "post.median": 3, "sigma": 2.0, "sign": "abs"}) == (
        "sign=abs sigma=2 post.median=3 steps=3"
    )
    assert sweep.value_text(list(range(40))) == "0,1,2,3,4,5,6,7,8,9,10,11,12,13 and 26 more"
    assert sweep.value_text([]) == ""
    comma = "/of/somebody, who likes commas/" + "in/names/" * 9 + "weights.safetensors"
    assert sweep.value_text(comma) == f"…{comma[-31:]}"
    assert sweep.differing([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1}]) == [{"b": 2}, {"b": 3}, {}]


def test_members_of_an_ensemble_stay_in_its_name() -> None:
    four = ["dae sigma=3 sign=positive", "reflect", "reflect", "restore sigma=5", "madad noise=matched"]
    assert sweep.value_text(four) == "dae sigma=3 sign=positive, 2 reflect, restore sigma=5, madad noise=matched"
    assert sweep.value_text(sweep.members_text(four), members=True) == sweep.value_text(four)
    assert sweep.value_text(["dae", "dae", "ae"]) == "2 dae, ae"

    def cut(members: list[str]) -> str:
        """Without the mark that follows."""
        found = sweep.value_text(sweep.members_text(members), members=True)
        assert re.fullmatch(".* #[0-9a-f]{6}", found)
        assert " " not in members[0] or found == sweep.value_text(members)
        return sweep.MARK.sub("", found)

    sized = [f"{member} image_size=64" for member in four]
    assert cut(sized) == "dae sigma=3 sign=positive …, 2 reflect …, restore sigma=5 …, madad noise=matched …"
    many = [f"dae sigma={number} sign=negative" for number in range(9)] + ["vae sigma=1 lr=0.1"] * 2
    assert cut(many) == f"{'dae sign=negative …, ' * 4}".removesuffix(", ") + " and 6 more"
    unlike = [f"dae {'steps=3 ' * 12}smooth=signed", "dae smooth=magnitude", "ae lr=0.1", "ae lr=0.1"]
    assert cut(unlike) == "dae …, dae …, 2 ae …", "only equal members are counted together"
    names = [f"method{number:02}" for number in range(20)]
    assert cut(names).endswith("method07, method08 and 11 more")
    assert len(sweep.value_text(["m" * 500, "dae sigma=1"])) < 120
    longer = [[*names, end] for end in ("method20", "method21", "method20")]
    assert [cut(one) for one in longer] == [f"{cut(names).removesuffix(' 11 more')} 12 more"] * 3
    first, second, again = (sweep.value_text(sweep.members_text(one), members=True) for one in longer)
    assert first == again != second, "two ensembles that are cut alike, or one"
    assert "#" not in sweep.value_text(list(range(40)))


def test_cells_are_named_by_what_differs_from_the_preset() -> None:
    found = cells("dae.steps=3", "dae.sign=positive", "post.median=3", method="histeq,dae")
    assert [cell.label for cell in found] == [
        "histeq [tiny] post.median=3 phantom FLAIR seed 0",
        "dae [tiny] sign=positive post.median=3 steps=3 phantom FLAIR seed 0",
    ]
    (ensemble,) = cells("ensemble.members=[dae sign=positive, histeq, histeq]", method="ensemble")
    assert ensemble.label == "ensemble [tiny] members=dae sign=positive, 2 histeq phantom FLAIR seed 0"
    assert cells("histeq.sigma=3")[0].label == "histeq [tiny] phantom FLAIR seed 0"


def test_cells_are_told_apart_where_what_they_share_fills_the_name() -> None:
    shared = ["sign=positive", "sigma=1", "score=both", "noise=matched", "noise_offset=2", "mask_weight=0.1"]
    swept = ["threshold=0.1,0.2", "eta=0.1,0.2", "gamma=0.1,0.3"]
    sets = [f"madad.{one}" for one in (*shared, *swept)]
    found = cells(*sets, "post.sigma=2", "post.median=3", method="madad")
    names = [cell.label for cell in found]
    assert len(set(names)) == 8
    assert names[0].startswith("madad[matched] [tiny] ")
    assert all(one in names[0] for one in ("threshold=0.1", "eta=0.1", "gamma=0.1", "sign=positive", "post.median=3"))
    more = [f"madad.{name}=1,2" for name in ("steps", "ae_steps", "accumulate")]
    more += ["madad.lr=0.01,0.02", "madad.ae_lr=0.01,0.02", "madad.weight_decay=0.01,0.02"]
    many = [cell.label for cell in cells(*more, *sets[-3:], method="madad")]
    assert len(set(many)) == len(many) == 512
    assert " and 1 more " in many[0]


def test_cells_with_long_values_are_told_apart_by_what_was_cut_off() -> None:
    shared = [f"dae sigma={number} sign=positive" for number in range(1, 10)]
    members = [[*shared, "ae sigma=1"], [*shared, "ae sigma=2"]]
    first, second = (cell.label for cell in cells(f"ensemble.members={members}", method="ensemble"))
    bare = [sweep.MARK.sub("", label) for label in (first, second)]
    assert bare[0] == bare[1].replace("members=… ae sigma=2", "members=… ae sigma=1") != bare[1]
    alone = [cells(f"ensemble.members={one}", method="ensemble")[0].label for one in members]
    assert alone[0] != alone[1], "each in a table of its own"
    assert [label.partition("#")[2][:6] for label in alone] == [
        label.partition("#")[2][:6] for label in (first, second)
    ]
    names = [{"file": f"/data/{start}/{'long-' * 12}name"} for start in "aab"]
    texts = labels.texts_apart(names, [{"file"}] * 3, [""] * 3)
    assert [text.partition(" ")[2] for text in texts] == ["file=/data/a…", "file=/data/a…", "file=/data/b…"]
    assert " " not in labels.texts_apart(names, [{"file"}] * 3, ["", "", "other"])[2], "another word tells it apart"


@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_cells_and_rows_name_a_method_alike(preset: str) -> None:
    flags = {"dataset": "phantom", "device": "cpu", "preset": preset}
    published = Path(__file__).parents[2] / "leaderboards" / "phantom" / "records"
    record = submission.read_submission(next(published.glob("*-seed0-*.json"))).record
    for method, *sets in (
        ("madad", "madad.noise=matched", "madad.score=both"),
        ("thor", "thor.perceptual=none"),
        ("features", "features.weights=random", "post.median=3"),
        ("reflect", "reflect.texture=simplex"),
        ("ensemble", "ensemble.members=[dae,ae]"),
        ("histeq", "histeq.sigma=4,5"),
    ):
        found = run_config.cells(run_config.load(None, {**flags, "method": method}, sets))
        rows = []
        for cell in found:
            own = {"name": method, "preset": preset, "params": cell.params.json_values}
            own["origin"] = registry.entries("methods")[method].origin
            rows.append(
                record.model_copy(update={"method": record.method.model_copy(update=own), "post": cell.post.done})
            )
        assert [f"{name.label} phantom FLAIR seed 0" for name in row_names(rows)] == [cell.label for cell in found]
