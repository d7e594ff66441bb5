"""Search spaces: narrowed, replaced, checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from adbench.errors import UserError
from adbench.methods.ae import AE
from adbench.methods.simple import Constant, HistEq
from adbench.tune import space

BASE = AE.resolve("tiny", {}).model_dump(mode="json")


def built(text: str | None, tmp_path: Path, fixed: dict | None = None) -> tuple[space.Space, dict]:
    path = None
    if text is not None:
        path = tmp_path / "space.yaml"
        path.write_text(text)
    return space.build_space(AE, BASE, fixed or {}, path)


def test_without_a_file_it_is_the_methods_own(tmp_path: Path) -> None:
    wanted, values = built(None, tmp_path)
    assert set(wanted) == set(AE.search_space())
    assert values == {}


def test_narrow_changes_entries_and_plain_values_are_fixed(tmp_path: Path) -> None:
    wanted, values = built(
        "narrow:\n  lr: {low: 1e-4, high: 1e-3, log: true}\n  sigma: 2\n  batch: {low: 4, high: 8}", tmp_path
    )
    assert wanted["lr"] == {"low": 1e-4, "high": 1e-3, "log": True, "integer": False}  # YAML reads 1e-4 as a text
    assert wanted["batch"] == {"low": 4, "high": 8, "log": False, "integer": True}
    assert "latent" in wanted
    assert "sigma" not in wanted
    assert values == {"sigma": 2.0}


def test_replace_leaves_nothing_of_the_methods_own(tmp_path: Path) -> None:
    wanted, _ = built("replace: {channels: {choices: [[8, 16], [16, 32]]}}", tmp_path)
    assert wanted == {"channels": {"choices": [[8, 16], [16, 32]]}}


def test_what_the_user_sets_is_not_searched_unless_the_file_asks(tmp_path: Path) -> None:
    assert "lr" not in built(None, tmp_path, {"lr": 1e-3})[0]
    assert "lr" in built("narrow: {lr: {low: 0.001, high: 0.002}}", tmp_path, {"lr": 1e-3})[0]


def test_points_and_values_are_inverse(tmp_path: Path) -> None:
    wanted, _ = built(
        "replace: {channels: {choices: [[8, 16], [16, 32]]}, augment: {choices: [true, false]}, lr: {low: 0.001, high: 0.01}}",
        tmp_path,
    )
    chosen = {"channels": [16, 32], "augment": False, "lr": 0.005}
    known = space.nearest(wanted, chosen)
    assert space.values(wanted, known) == chosen
    assert space.distributions(wanted)["channels"].to_internal_repr(known["channels"]) == 1
    outside = space.nearest(wanted, {"channels": [8, 8], "augment": False, "lr": 0.5})
    assert space.values(wanted, outside) == {"channels": [8, 16], "augment": False, "lr": 0.01}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("narrow: {learning: {low: 1, high: 2}}", "Unknown parameter of method ae in"),
        ("narrow: {latents: {low: 1, high: 2}}", "Did you mean 'latent'?"),
        ("narrow: {lr: {low: 0.1, high: 0.01}}", "from a number up to a larger one"),
        ("narrow: {lr: {low: a, high: 1}}", "from a number up to a larger one"),
        ("narrow: {lr: {low: .nan, high: 1}}", "from a number up to a larger one"),
        ("narrow: {sigma: {low: 0, high: 1, log: true}}", "must start above 0"),
        ("narrow: {lr: {low: 0.1, high: 7}}", "lr = 7.0 is not valid: Input should be less than or equal to 1"),
        ("narrow: {lr: {low: 0.1, hihg: 1}}", "write {low: 1e-4"),
        ("narrow: {batch: {low: 1, high: 2.5}}", "batch = 2.5 is not valid"),
        ("narrow: {latent: {choices: [3]}}", "at least two choices"),
        ("narrow: {latent: {choices: [3, many]}}", "latent = 'many' is not valid"),
        ("narrow: {sigma: -1}", "sigma = -1 is not valid"),
        ("replace: {sigma: 1}", "There is nothing to search for ae"),
        ("lr: {low: 1, high: 2}", "must hold one key, `narrow:`"),
        ("narrow: []", "must hold one key, `narrow:`"),
        ("- a", "must hold one key, `narrow:`"),
        ("narrow: {lr: [", "not valid YAML"),
    ],
)
def test_mistakes_are_one_clear_sentence(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        built(text, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_method_with_nothing_to_search_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to search for constant"):
        space.build_space(Constant, {}, {}, None)
    with pytest.raises(UserError, match="cannot be read"):
        space.build_space(HistEq, HistEq.resolve("tiny", {}).model_dump(), {}, tmp_path / "none.yaml")
