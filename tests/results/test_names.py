"""Rows are told apart by what differs in them, and by a hash only when nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adbench.config.registry import load
from adbench.config.shared_fit import Weights
from adbench.leaderboard import submission
from adbench.results.names import row_names, told_apart, training_names
from adbench.results.record import Record

PUBLISHED = Path(__file__).parents[2] / "leaderboards" / "phantom" / "records"


@pytest.fixture(scope="module")
def record() -> Record:
    return submission.read_submission(next(PUBLISHED.glob("phantom-flair-histeq-*-seed0-*.json"))).record


def changed(record: Record, *, train: dict[str, Any] | None = None, **update: Any) -> Record:
    method = {name: update.pop(name) for name in ("params", "version", "name", "preset", "origin") if name in update}
    if "params" in method:
        method["params"] = {**record.method.params, **method["params"]}
    parts = {
        "method": record.method.model_copy(update=method),
        "train": record.train.model_copy(update=train or {}),
    }
    return record.model_copy(update={**parts, **update})


def labels(*records: Record, seeds: bool = False) -> list[str]:
    return [name.label for name in row_names(records, seeds=seeds)]


def test_parameters_tell_rows_apart(record: Record) -> None:
    five, dark = changed(record, params={"sigma": 5.0}), changed(record, params={"sigma": 5.0, "polarity": "dark"})
    assert labels(record) == ["histeq [tiny]"]
    assert labels(record, five) == ["histeq [tiny] sigma=3", "histeq [tiny] sigma=5"]
    assert labels(record, five, dark)[2] == "histeq [tiny] sigma=5 polarity=dark"
    assert row_names([record, dark])[1].differs == {"sigma": 5.0, "polarity": "dark"}
    assert labels(five, changed(record, name="zscore")) == ["histeq [tiny] sigma=5", "zscore [tiny]"]


def test_what_differs_from_the_preset_always_stands_in_the_name(record: Record) -> None:
    def own(method: str, **params: Any) -> Record:
        preset = load("methods", method).resolve("tiny", {}).json_values
        return changed(record, name=method, params={**preset, **params})

    assert labels(own("dae", steps=3, sign="positive"), record) == ["dae [tiny] sign=positive steps=3", "histeq [tiny]"]
    assert labels(own("dae")) == ["dae [tiny]"]
    assert labels(own("madad", noise="matched", score="probability")) == ["madad[matched] [tiny] score=probability"]
    assert labels(own("madad", noise="white"), own("madad", noise="offset")) == [
        "madad [tiny] noise=white",
        "madad[offset] [tiny]",
    ]
    assert labels(own("madad"), own("madad", noise="matched", score="both", eta=0.2)) == [
        "madad [tiny]",  # its own three values would make a long name of the shortest
        "madad[matched] [tiny] score=both eta=0.2",
    ]
    assert labels(own("latent", distance="mahalanobis", sigma=1.0)) == ["latent [tiny] sigma=1 distance=mahalanobis"]
    assert labels(own("ensemble", members=["dae sign=positive", "ae", "ae"], quantile=0.9)) == [
        "ensemble [tiny] members=dae sign=positive, 2 ae quantile=0.9"
    ]
    older = changed(own("dae", steps=3))  # its version had no sign, and something that is gone
    del older.method.params["sign"]
    older.method.params["momentum"] = 0.9
    assert labels(older) == ["dae [tiny] steps=3"]
    assert labels(own("dae", steps=3), older)[0] == "dae [tiny] sign=abs steps=3"
    assert row_names([own("dae", steps=3)])[0].differs == {}, "no other row has another number of steps"


def test_names_of_many_parameters_are_bounded_and_distinct(record: Record) -> None:
    preset = load("methods", "madad").resolve("tiny", {}).json_values
    odd = {name: value + 1 for name, value in preset.items() if type(value) in (int, float)}
    one = changed(record, name="madad", params={**preset, **odd, "score": "both", "variant": "paper"})
    (label,) = labels(one)
    assert label.startswith("madad [tiny] sigma=3.5 score=both ")
    assert label.endswith(f" and {len(odd) + 2 - 8} more")
    other = changed(one, params={"weight_decay": 0.5})
    assert "weight_decay=0.5" in labels(one, other)[1], "what tells rows apart comes before what does not"
    sets = [changed(one, params={name: value + at for name, value in odd.items()}) for at in range(3)]
    assert len(set(labels(*sets))) == 3
    last = list(odd)[-1]
    hidden = [changed(one, params={**dict.fromkeys(odd, 0.25), last: at}) for at in range(2)]
    assert [label.split(" more ")[1:] for label in labels(*sets, *hidden)] == [[], [], [], [f"{last}=0"], [f"{last}=1"]]


def test_where_the_preset_is_not_known_rows_say_what_tells_them_apart(record: Record) -> None:
    for one in (
        changed(record, preset="mine"),
        changed(record, name="nobodys"),
        changed(record, origin="another-package 1.0"),  # of this name, too
    ):
        five = changed(one, params={"sigma": 5.0}, name=one.method.name)
        name = f"{one.method.name} [{one.method.preset}]"
        assert labels(five) == [name]
        assert labels(one, five) == [f"{name} sigma=3", f"{name} sigma=5"]


def test_what_was_done_to_maps_always_stands_in_the_name(record: Record) -> None:
    filtered = changed(record, post={"median": 3})
    assert labels(filtered) == ["histeq [tiny] post.median=3"]
    assert labels(record, filtered) == ["histeq [tiny]", "histeq [tiny] post.median=3"]


def test_what_a_method_stands_on_is_part_of_its_name(record: Record) -> None:
    control = changed(record, name="features", params={"weights": "random"})
    assert labels(control) == ["features[random] [tiny] sigma=3"]
    lite = changed(control, params={"weights": "lite0", "sigma": 5.0})
    assert labels(control, lite) == ["features[random] [tiny] sigma=3", "features[lite0] [tiny] sigma=5"]
    assert row_names([control, lite])[1].differs == {"weights": "lite0", "sigma": 5.0}
    files = [changed(control, params={"weights": f"/data/{name}/r18.pth"}) for name in "ab"]
    assert labels(files[0]) == ["features[r18.pth] [tiny] sigma=3"]
    assert len(set(labels(*files))) == 2
    texture = {"name": "reflect", "params": {"texture": "simplex", "sigma": 5.0}}
    assert labels(changed(record, **texture)) == ["reflect[simplex] [tiny] sigma=5"]
    assert labels(changed(record, name="reflect")) == ["reflect [tiny] sigma=3"]  # a record that does not say


def test_data_tell_rows_apart(record: Record) -> None:
    other = changed(record, train={"name": "ixi", "params": {"something": 1}})
    fewer = changed(record, train={"params": {**record.train.params, "n_train": 2}})
    assert labels(record, other) == ["histeq [tiny] on phantom", "histeq [tiny] on ixi"]
    assert labels(record, fewer)[1] == "histeq [tiny] n_train=2"


def test_two_folders_of_one_name_are_told_apart(record: Record) -> None:
    numbers = {"name": "hospital", "slices": 9, "subjects": 3}
    one = changed(record, train={**numbers, "digest": "a1" * 32})
    two = changed(record, train={**numbers, "digest": "b2" * 32})
    ixi = changed(record, train={"name": "ixi"})
    alike = "hospital (9 slices of 3 subjects, {})"  # a hash tells nobody anything, and never stands alone
    assert training_names([one, two, ixi]) == [alike.format("a1a1a1"), alike.format("b2b2b2"), "ixi"]
    near = [changed(record, train={**numbers, "digest": "abcdef" + end * 29}) for end in ("01", "02")]
    assert training_names(near) == [alike.format("abcdef01"), alike.format("abcdef02")]
    more = changed(two, train={"slices": 12})
    assert training_names([one, more]) == ["hospital (9 slices of 3 subjects)", "hospital (12 slices of 3 subjects)"]
    params = [{**record.train.params, "n_train": n, "slices": s} for n, s in ((4, 2), (5, 2), (5, 2))]
    sets = [changed(one, train={"params": p, "digest": d * 64}) for p, d in zip(params, "abc", strict=True)]
    assert training_names(sets[:2]) == ["hospital (n_train=4)", "hospital (n_train=5)"]
    assert training_names(sets)[1] == "hospital (n_train=5, 9 slices of 3 subjects, bbbbbb)"
    assert training_names([one, ixi, one]) == ["hospital", "ixi", "hospital"]
    apart = [part.train for part in (sets[0], changed(sets[0], train={"params": params[1]}), sets[1])]
    assert told_apart(apart)[0].startswith("9 slices of 3 subjects, "), "n_train=4 and 5 have the same slices here"
    swept = [
        one.model_copy(update={"params": {**one.params, "step": n}}) for one, n in zip(apart, (1, 1, 2), strict=True)
    ]
    assert told_apart(swept) == ["step=1", "step=1", "step=2"]
    assert labels(one, more) == ["histeq [tiny] (9 training slices)", "histeq [tiny] (12 training slices)"]
    assert labels(one, two)[1] == "histeq [tiny] (9 training slices, b2b2b2)"
    assert labels(one, two, ixi)[1:] == [
        "histeq [tiny] on hospital (9 training slices, b2b2b2)",
        "histeq [tiny] on ixi",
    ]
    said = changed(
        record, train={"name": "hospital", "digest": "", "slices": 0}
    )  # of maps: nothing is known but the name
    assert training_names([one, said]) == ["hospital", "hospital"]


def test_seeds_stand_in_a_column_of_their_own(record: Record) -> None:
    assert labels(record, changed(record, seed=1), seeds=True) == ["histeq [tiny]"] * 2


def test_code_and_time_before_keys(record: Record) -> None:
    assert labels(record, changed(record, version="7"))[1] == "histeq [tiny] v7"
    later = changed(record, created="2031-02-03T04:05:06+00:00")
    assert labels(record, later)[1] == "histeq [tiny] made 2031-02-03"
    hour = changed(record, created="2031-02-03T05:05:06+00:00")
    assert labels(later, hour) == ["histeq [tiny] made 2031-02-03 04:05:06", "histeq [tiny] made 2031-02-03 05:05:06"]
    twin = changed(record, run_key="f" * 64)
    assert labels(record, twin)[1].endswith("key ffffffff")
    assert len(set(labels(record, twin, later, hour))) == 4


def test_submitter_and_weights_before_time(record: Record) -> None:
    later = changed(record, created="2031-02-03T04:05:06+00:00")
    named = row_names([record, later, later], submitters=["", "A. Person", "B. Person"])
    assert [name.label for name in named] == [f"histeq [tiny]{end}" for end in ("", " by A. Person", " by B. Person")]
    weights = Weights(author="C. Person", licence="cc-by-4.0")
    assert labels(record, changed(later, weights=weights))[1] == "histeq [tiny] weights by C. Person"
    named = row_names([record, later], submitters=["A. Person", "A. Person"])
    assert named[1].label == "histeq [tiny] made 2031-02-03"


def test_rows_with_the_same_cut_values_say_what_was_cut_off(record: Record) -> None:
    shared = [f"dae sigma={number} sign=positive" for number in range(1, 10)]
    ends = ["vae scoring=restoration", "vae scoring=reconstruction"]
    one, two = (changed(record, name="ensemble", params={"members": [*shared, end]}) for end in ends)
    found = labels(one, two)
    assert [label.partition(" more ")[2][8:] for label in found] == [f"members=… {end}" for end in ends]
    assert labels(one) != labels(two), "a mark of what is cut tells them apart in other tables too"
    twice = labels(one, two, changed(two, created="2031-02-03T04:05:06+00:00"))
    assert twice[0] == found[0], "the time is said where nothing else differs"
    assert twice[2] == f"{found[1]} made 2031-02-03"
    paths = [f"{folder}/{'long-' * 9}name" for folder in ("north", "south")]
    found = labels(*(changed(record, params={"file": path}) for path in paths))
    assert [label.rpartition(" ")[2] for label in found] == ["file=nor…", "file=sou…"]
