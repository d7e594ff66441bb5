"""The page: whole, self-contained, escaped; the subjects it shows; what it refuses."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adbench import api
from adbench.config.sweep import value_text
from adbench.errors import UserError
from adbench.evaluation.compare import same_test
from adbench.report import figures
from adbench.report.collect import choose, choose_slices, collect, window
from adbench.report.drawing import contour, map_uri
from adbench.report.render import _ranks, write_report
from adbench.runner.fit import FIT
from adbench.runner.fit import fitted as read_fit
from adbench.utils.files import write_json
from adbench.utils.hashing import digest_file, sealed

Cli = Callable[..., tuple[int, str, str]]


class _Page(HTMLParser):
    """Everything in a page that could leave it, and its visible words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "srcset", "data", "action"} and value is not None:
                self.links.append(value)
            if name == "id" and value is not None:
                self.ids.append(value)


@pytest.fixture(scope="module")
def page(runs: list[api.Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    return write_report(collect(runs, count=1, slices=2), out, "adbench report runs")[0]


def test_page_is_self_contained_and_well_formed(page: Path) -> None:
    found = _Page(page)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in found.links)
    assert len(set(found.ids)) == len(found.ids)
    assert {"link", "iframe", "object", "base"}.isdisjoint(found.tags)
    assert found.tags.count("script") == 1
    text = page.read_text(encoding="utf-8")
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)
    anchors = {link[1:] for link in found.links if link.startswith("#")}
    assert anchors <= set(found.ids)


def test_page_shows_numbers_runs_and_sections(page: Path, runs: list[api.Run]) -> None:
    text = page.read_text(encoding="utf-8")
    for run in runs:
        assert f"{run.record.metrics['auprc'].value:.3f}" in text
        assert run.record.run_key in text
        assert run.record.provenance["packages"]["torch"] in text
    for section in ("results", "curves", "strata", "subjects", "training", "pictures", "runs"):
        assert f'<section id="{section}">' in text
    assert "steps: 6" in text  # the configuration, in YAML


def test_pngs_stand_beside_the_page(page: Path) -> None:
    names = {path.name for path in (page.parent / "figures").iterdir()}
    assert {"pr.png", "roc.png", "dice.png", "subjects.png", "lesions.png", "losses.png"} <= names
    assert any(name.startswith("subject-01-") for name in names)
    for name in names:
        assert Image.open(page.parent / "figures" / name).size[0] > 400


def test_report_is_deterministic(page: Path, runs: list[api.Run], tmp_path: Path) -> None:
    again = write_report(collect(runs, count=1, slices=2), tmp_path, "adbench report runs")[0]
    assert again.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_a_single_run_of_lesion_free_portraits(runs: list[api.Run], tmp_path: Path) -> None:
    report = collect(runs[2:], count=0, subjects=runs[2].subjects[:1])
    assert report.comparison is None
    (portrait,) = report.portraits
    assert portrait.reason == "asked for"
    assert portrait.slices[0].reconstructions  # ae reconstructs
    text = write_report(report, tmp_path, "adbench report")[0].read_text(encoding="utf-8")
    assert "Paired differences" not in text


def test_chosen_subjects_are_the_best_the_median_and_the_worst(runs: list[api.Run]) -> None:
    report = collect(runs[:1], count=2)
    values = {row["subject"]: row["dice@val"] for row in runs[0].record.subjects}
    order = sorted(values, key=lambda subject: -values[subject])
    by_reason: dict[str, list[str]] = {}
    for portrait in report.portraits:
        by_reason.setdefault(portrait.reason, []).append(portrait.subject)
    assert by_reason["best"] == order[:2]
    assert by_reason["worst"] == order[-2:]
    # 9 subjects: two in the middle are the 4th and 5th, none of them best or worst.
    assert by_reason["median"] == order[3:5]
    assert set(by_reason["random"]) <= set(order[2:3] + order[5:7])
    assert [p.subject for p in choose(report.parts, 2)[0]] == [p.subject for p in report.portraits]


def test_every_method_is_shown_on_the_same_slices(runs: list[api.Run]) -> None:
    for portrait in collect(runs, count=1).portraits:
        for shown in portrait.slices:
            assert set(shown.maps) == {"histeq [tiny]", "constant [tiny]", "ae [tiny] steps=6"}
            assert set(shown.reconstructions) == {"ae [tiny] steps=6"}


def test_slices_hold_the_largest_lesion() -> None:
    lesion = np.zeros((9, 4, 4), bool)
    for index, count in {2: 1, 3: 3, 4: 9, 7: 2}.items():
        lesion[index].flat[:count] = True
    subject: Any = type("S", (), {"lesion": lesion})
    assert choose_slices(subject, 1) == [4]
    assert choose_slices(subject, 3) == [2, 4, 7]
    subject.lesion = np.zeros((9, 4, 4), bool)
    assert choose_slices(subject, 3) == [2, 4, 6]
    subject.lesion = np.zeros((1, 4, 4), bool)
    assert choose_slices(subject, 3) == [0]


def test_window_is_percentiles_of_the_scores(runs: list[api.Run]) -> None:
    scores = np.concatenate([subject.maps[subject.brain] for subject in runs[0].each(reconstructions=False)])
    expected = np.quantile(scores, [0.01, 0.995], method="inverted_cdf")
    assert window(runs[0].histograms.pooled()) == pytest.approx(expected, rel=2e-3)
    low, high = window(runs[1].histograms.pooled())  # a constant map
    assert low < high


def test_contours_enclose_the_mask() -> None:
    mask = np.zeros((6, 8), bool)
    mask[2:4, 1:6] = True
    points = np.array(re.findall(r"[\d.]+ [\d.]+", contour(mask)))
    x, y = np.array([[float(v) for v in point.split()] for point in points]).T
    # Half way between the centres of the outermost voxels inside and their neighbours outside: the voxels' edges.
    assert (x.min(), x.max(), y.min(), y.max()) == (1.0, 6.0, 2.0, 4.0)
    assert contour(np.zeros((4, 4), bool)) == ""


def test_map_picture_is_transparent_outside_the_brain() -> None:
    import base64
    import io

    brain = np.array([[True, False], [True, True]])
    uri = map_uri(np.array([[0.0, 9.0], [0.5, 1.0]], np.float32), brain, (0.0, 1.0))
    rgba = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))
    assert rgba[..., 3].tolist() == [[255, 0], [255, 255]]
    assert rgba[0, 0, :3].sum() < 10  # the dark end
    assert rgba[1, 1, :3].tolist() == [252, 255, 164]  # the bright end of inferno


def test_markup_in_a_record_is_text_on_the_page(own_runs: list[api.Run], tmp_path: Path) -> None:
    path = own_runs[0].folder / "record.json"
    evil = "<script>alert(1)</script>$x^$&\"'"
    content = json.loads(path.read_text())
    content["method"]["name"] = evil
    content["notes"] = [evil]
    content["provenance"]["platform"] = {"deep": [evil]}
    content["fit"] = {
        "steps": evil,
        "best": evil,
        "curves": {evil: [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": "x", "loss": evil}, 7]},
    }
    content["test"]["name"] = evil
    path.write_text(json.dumps(content))
    files = write_report(collect([api.Run(path.parent)], count=1), tmp_path / "out", f"adbench {evil}")
    text = files[0].read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)") > 4
    assert _Page(files[0]).tags.count("script") == 1
    assert all(path.parent == tmp_path / "out" / "figures" for path in files[1:])


def test_shared_ranks_are_written_as_on_a_board() -> None:
    ranks = {"a": 1, "b": 1, "c": 3, "d": None}
    assert _ranks(SimpleNamespace(comparison=SimpleNamespace(ranks=ranks))) == {"a": "=1", "b": "=1", "c": "3", "d": ""}  # type: ignore[arg-type]
    assert _ranks(SimpleNamespace(comparison=None)) == {}  # type: ignore[arg-type]


def test_the_modality_alone_tells_two_test_sets_of_one_dataset_apart(own_runs: list[api.Run]) -> None:
    path = own_runs[1].folder / "record.json"
    content = json.loads(path.read_text())
    content["test"] |= {"digest": "0" * 64, "modality": "T9"}
    path.write_text(json.dumps(content))
    name = content["test"]["name"]
    with pytest.raises(UserError, match=rf"{name} \w+: .*{name} T9: |{name} T9: .*{name} \w+: "):
        same_test([own_runs[0], api.Run(path.parent)])


def test_different_test_sets_are_refused(runs: list[api.Run], own_runs: list[api.Run], tmp_path: Path) -> None:
    path = own_runs[1].folder / "record.json"
    content = json.loads(path.read_text())
    content["test"]["digest"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"not measured on the same test slices.*name those of one test set alone"):
        collect([runs[0], api.Run(path)])
    content["test"]["params"]["size"] = 77
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as refused:
        collect([*runs, api.Run(path)])
    own = runs[0].record.test.params["size"]
    assert f"FLAIR, size={value_text(own)}: {' '.join(str(run.folder) for run in runs)}; " in str(refused.value)
    assert f"FLAIR, size=77: {path.parent}." in str(refused.value)
    assert "00000000" not in str(refused.value)


def test_changed_histograms_are_refused(own_runs: list[api.Run]) -> None:
    path = own_runs[0].folder / "histograms.npz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="is not the file that the record describes"):
        collect(own_runs[:1])


def test_a_test_set_without_lesions_has_a_page(make_slices: Any, tmp_path: Path) -> None:
    slices = make_slices(tmp_path / "slices")
    for mask in (slices / "test").glob("*-segmentation.png"):
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(mask)
    runs = api.run("histeq,constant", "folder", data_root=str(slices), device="cpu", out=tmp_path / "runs")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        report = collect(runs, count=1)
        page, *pngs = write_report(report, tmp_path / "out", "adbench report")
    assert [portrait.reason for portrait in report.portraits] == ["random"]
    assert (
        "Methods were not compared: auprc is undefined, because there is no lesion voxel in the whole test split."
        in report.notes
    )
    assert "no lesion" in page.read_text(encoding="utf-8")
    assert not any(path.name == "pr.png" for path in pngs)


def test_without_maps_and_fit_the_page_says_so(own_runs: list[api.Run], tmp_path: Path) -> None:
    (own_runs[2].fit_folder / "fit.json").unlink()
    report = collect(own_runs, count=1)
    assert any("ae [tiny] steps=6 is not in the pictures" in note and "neither maps" in note for note in report.notes)
    assert all("ae [tiny] steps=6" not in shown.maps for p in report.portraits for shown in p.slices)
    assert "is not in the pictures" in write_report(report, tmp_path, "adbench")[0].read_text(encoding="utf-8")
    with pytest.raises(UserError, match="neither maps"):
        collect(own_runs[2:], subjects=own_runs[2].subjects[:1])


def test_other_weights_are_noticed(own_runs: list[api.Run]) -> None:
    from safetensors.torch import load_file, save_file

    weights = own_runs[2].fit_folder / "model.safetensors"
    save_file({key: value * 1.5 for key, value in load_file(weights).items()}, weights)
    assert any("model.safetensors was changed" in note for note in collect(own_runs[2:], count=1).notes)
    fit = read_fit(own_runs[2].fit_folder, own_runs[2].record.fit_key)
    assert fit is not None
    fit["files"][weights.name] = digest_file(weights)  # as if they had been trained anew, elsewhere
    write_json(own_runs[2].fit_folder / FIT, sealed(fit))
    assert any("are not those that were measured" in note for note in collect(own_runs[2:], count=1).notes)


def test_command_line(cli: Cli, runs: list[api.Run], tmp_path: Path) -> None:
    out = tmp_path / "page"
    code, stdout, err = cli("report", runs[0].folder, runs[1].folder, "--out", out, "--count", 1)
    assert (code, stdout) == (0, f"{out / 'index.html'}\n"), err
    code, stdout, _ = cli("report", runs[0].folder, "--out", out, "--count", 0, "--json")
    answer = json.loads(stdout)
    assert Path(answer["page"]).is_file()
    assert all(Path(path).is_file() for path in answer["figures"])
    assert answer["nifti"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such-run",), "There is no record at"),
        (("{run}", "--subject", "nobody"), "There is no test subject 'nobody'"),
        (("{run}", "--nifti-all"), "needs --nifti"),
    ],
)
def test_mistakes_are_one_sentence(
    cli: Cli, runs: list[api.Run], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    filled = [str(runs[0].folder) if a == "{run}" else a for a in arguments]
    code, _, err = cli("report", *filled, "--out", tmp_path / "out", "--quiet")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_page_in_a_browser(page: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By

    browser.get_log("performance")
    browser.get(f"file://{page}")
    requests = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if json.loads(entry["message"])["message"]["method"] == "Network.requestWillBeSent"
    ]
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in requests) == 1
    before = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != before
    path = browser.find_element(By.CSS_SELECTOR, ".slice.on path.truth")
    assert path.value_of_css_property("display") != "none"
    browser.find_element(By.ID, "show-truth").click()
    assert path.value_of_css_property("display") == "none"
    tile = browser.find_element(By.CSS_SELECTOR, ".slice.on button.tile")
    browser.execute_script("arguments[0].scrollIntoView({block:'center'})", tile)
    tile.click()
    assert browser.find_element(By.ID, "large").get_attribute("open") is not None
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert [entry for entry in browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}] == []


def test_no_report_is_overwritten_and_its_path_is_printed(cli: Cli, runs: list[api.Run], tmp_path: Path) -> None:
    earlier = tmp_path / "report" / "index.html"
    earlier.parent.mkdir()
    earlier.write_text("an earlier report", encoding="utf-8")
    out = cli("report", runs[1].folder, "--count", "0", "--quiet", "--out", earlier.parent)[1]
    assert Path(out.strip()) == tmp_path / "report-2" / "index.html"
    assert Path(out.strip()).is_file()
    assert earlier.read_text(encoding="utf-8") == "an earlier report"


def test_the_curve_against_a_swept_parameter(runs: list[api.Run]) -> None:
    record = runs[0].record

    def shown(auprc: float | None, **differs: Any) -> Any:
        number = record.metrics["auprc"].model_copy(update={"value": auprc, "low": None, "high": None})
        other = record.model_copy(update={"metrics": {**record.metrics, "auprc": number}})
        return SimpleNamespace(run=SimpleNamespace(record=other), differs=differs)

    parts = [shown(0.2, sigma=4.0), shown(0.3, sigma=1.0), shown(0.5, sigma=1.0), shown(None, sigma=8.0)]
    figure = figures.sweep(SimpleNamespace(parts=parts))
    auprc, dice = figure.axes
    assert (auprc.get_xlabel(), auprc.get_ylabel(), dice.get_ylabel()) == ("sigma", "AUPRC", "Dice@val")
    line = max(auprc.lines, key=lambda line: len(line.get_xdata()))
    assert list(line.get_xdata()) == [1.0, 4.0]
    assert list(line.get_ydata()) == pytest.approx([0.4, 0.2])  # the mean of two seeds
    words = [shown(0.2, polarity="dark"), shown(0.3, polarity="bright")]
    ticks = figures.sweep(SimpleNamespace(parts=words)).axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["bright", "dark"]
    assert figures.sweep(SimpleNamespace(parts=[shown(0.2)])) is None
