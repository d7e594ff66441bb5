"""What a key is made of: every file that is imported, read from a copy, and nothing else."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import adbench
from adbench.config import registry, run_config
from adbench.config import source as sources
from adbench.config.source import Closure
from adbench.datasets.store.prepare import prepare
from adbench.errors import UserError
from adbench.runner.plan import plan
from adbench.utils.hashing import digest

Cli = Callable[..., tuple[int, str, str]]
PACKAGE = Path(adbench.__file__).parent
METHOD = '''
import json
from pathlib import Path

from adbench.methods.simple import HistEq


class Scaled(HistEq):
    """Scaled."""

    name = "scaled"

    def score(self, batch):
        return super().score(batch) * json.loads((Path(__file__).parent / "tables" / "weights.json").read_text())[0]
'''


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The folder that holds a copy of the package."""
    shutil.copytree(PACKAGE, tmp_path / "copy" / "adbench", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


def key(copy: Path, module: str = "adbench.methods.ae") -> str:
    return digest(Closure([module, *sources.FIT_AND_SCORE], within={"adbench": copy}).digests())


def edited(path: Path) -> Iterator[None]:
    """One more line while the loop body runs."""
    before = path.read_bytes()
    path.write_bytes(before + b"\n# edited\n")
    yield
    path.write_bytes(before)


def test_each_imported_file_moves_the_key_and_no_other_does(copy: Path) -> None:
    counted = {path.relative_to(copy) for path in Closure(["adbench.methods.ae", *sources.FIT_AND_SCORE], within={"adbench": copy}).files.values()}  # fmt: skip
    assert key(copy) == sources.source_digest("methods", "ae")
    before = key(copy)
    for name in counted:
        for _ in edited(copy / name):
            assert key(copy) != before, name
    for path in copy.rglob("*.py"):
        if path.relative_to(copy) not in counted:
            path.write_bytes(path.read_bytes() + b"\n# edited\n")
    assert key(copy) == before


def test_what_fits_and_scores_counts_and_what_draws_and_ranks_does_not() -> None:
    """The modules of which the measured faults were: a seed's shift, what scores, a module of another method."""
    ae = sources.source_files("methods", "ae").keys()
    assert {
        f"adbench.{name}"
        for name in (
            "utils.seeds",
            "runner.inference",
            "runner.fit",
            "params",
            "datasets.slices",
            "methods.ae",
            "methods.training.run",
        )
    } <= ae
    assert (
        not {
            f"adbench.{name}"
            for name in (
                "methods.common.noise",
                "methods.vae",
                "api",
                "config.registry",
                "config.protocols",
                "runner.run_cell",
                "runner.samples",
                "runner.keys",
            )
        }
        & ae
    )
    assert not [name for name in ae if name.startswith(("adbench.cli", "adbench.report", "adbench.leaderboard"))]
    assert "adbench.methods.common.noise" in sources.source_files("methods", "dae")
    assert "adbench.methods.madad.diffusion" in sources.source_files("methods", "madad")


def test_a_module_that_is_loaded_while_fitting_and_scoring_is_in_the_closure(tmp_path: Path) -> None:
    """Nothing of adbench that runs is missed: an independent look, at what Python really imports."""
    import subprocess

    script = (
        "import json, sys\n"
        "from adbench.runner import fit, inference\n"
        "from adbench.methods.ae import AE\n"
        "import adbench.methods.trained_network, adbench.methods.common.preprocess, adbench.methods.training\n"
        "print(json.dumps([n for n in sys.modules if n.split('.')[0] == 'adbench']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) <= sources.source_files("methods", "ae").keys()


def test_the_version_of_adbench_is_in_no_key(copy: Path) -> None:
    before, file = key(copy), copy / "adbench" / "__init__.py"
    text = file.read_text()
    file.write_text(text.replace('__version__ = "', '__version__ = "9.'))
    assert key(copy) == before
    file.write_text(text + "import random\n")
    assert key(copy) != before


def test_every_way_to_import(tmp_path: Path) -> None:
    files = {
        "adbench/__init__.py": "",
        "adbench/entry.py": (
            "from __future__ import annotations\n"
            "import typing\nfrom typing import TYPE_CHECKING\n"
            "import adbench.dotted as d, json\n"
            "from . import sibling\n"
            "from .deep import thing\n"
            "from ..adbench.deep import other\n"
            "if TYPE_CHECKING:\n    from adbench import typed\nelse:\n    from adbench import runtime\n"
            "if typing.TYPE_CHECKING:\n    import adbench.typed\n"
            "def later():\n    from adbench.lazy import it\n"
            "try:\n    import adbench.absent\nexcept ImportError:\n    pass\n"
        ),
        **dict.fromkeys(
            [f"adbench/{name}.py" for name in ("dotted", "sibling", "typed", "runtime", "lazy", "unused")], ""
        ),
        "adbench/deep/__init__.py": "from adbench.deep.thing import *\n",
        "adbench/deep/thing.py": "import adbench.space.inner\n",
        "adbench/deep/other.py": "",
        "adbench/space/inner.py": "import adbench.entry\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = Closure(["adbench.entry"], within={"adbench": tmp_path}).files
    expected = [
        "deep",
        "deep.other",
        "deep.thing",
        "dotted",
        "entry",
        "lazy",
        "runtime",
        "sibling",
        "space.inner",
    ]
    assert list(found) == ["adbench", *(f"adbench.{name}" for name in expected)]
    (tmp_path / "adbench" / "lazy.py").write_text("def broken(:\n")
    with pytest.raises(UserError, match=r"lazy\.py cannot be read as Python source"):
        Closure(["adbench.entry"], within={"adbench": tmp_path})


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A method in a package on the path, with a table and a module beside it; gives the folder of both."""
    site = tmp_path / "plugin"
    files = {
        "adbench_scaled-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: adbench-scaled\nVersion: 1.0\n",
        "adbench_scaled-1.0.dist-info/entry_points.txt": "[adbench.methods]\nscaled = adbench_scaled.method:Scaled\n",
        "adbench_scaled/__init__.py": "",
        "adbench_scaled/method.py": f"import beside_scaled\nimport yaml\n{METHOD}",
        "adbench_scaled/unused.py": "",
        "adbench_scaled/tables/weights.json": "[1.0]",
        "beside_scaled.py": "TABLE = 'beside.csv'\n",
        "beside.csv": "1\n",
        "unrelated.py": "",
        "unrelated.csv": "",
    }
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    monkeypatch.syspath_prepend(site)
    for cached in (registry.entries, sources.source_digest):
        cached.cache_clear()
    yield site
    for name in [name for name in sys.modules if name.startswith(("adbench_scaled", "beside_scaled"))]:
        del sys.modules[name]
    for cached in (registry.entries, sources.source_digest):
        cached.cache_clear()


def test_a_plug_in_counts_with_its_data_and_what_lies_beside_it(plugin: Path) -> None:
    def made() -> str:
        return digest(sources.source_files("methods", "scaled"))

    own = {name for name in sources.source_files("methods", "scaled") if not name.startswith("adbench.")}
    assert own == {
        "adbench",
        "adbench_scaled",
        "adbench_scaled.method",
        "adbench_scaled/tables/weights.json",
        "adbench_scaled/unused.py",
        "beside_scaled",
    }
    before = made()
    for name in ("__init__.py", "tables/weights.json", "unused.py", "../beside_scaled.py"):
        for _ in edited(plugin / "adbench_scaled" / name):
            assert made() != before, name
    for name in ("unrelated.py", "unrelated.csv"):
        for _ in edited(plugin / name):
            assert made() == before, name
    for name in ("more.bin", "network.pth", "network.pt"):
        (plugin / "adbench_scaled" / "tables" / name).write_bytes(b"\0")
        assert made() != before, "a new data file"
        (plugin / "adbench_scaled" / "tables" / name).unlink()


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_all_source_of_a_plug_in_counts_with_what_it_imports(tmp_path: Path) -> None:
    files = {
        "lab/__init__.py": "",
        "lab/sub/method.py": "from __future__ import annotations\nfrom . import fast\nexec('import lab.hidden')\n",
        "lab/sub/fast.so": "",
        "lab/hidden.py": "import helper",
        "lab/odd-name.py": "",
        "lab/old/template.py": "print 'of another Python'\n",
        "lab/.venv/other.py": "",
        "helper/__init__.py": "",
        "helper/named.py": "",
        "mine.py": "",
        "unrelated.py": "",
    }
    within = dict.fromkeys(("lab", "helper", "mine", "unrelated"), written(tmp_path, files))
    found = Closure(["lab.sub.method"], own=["lab", "mine", "absent"], within=within).files
    modules = {"lab", "lab.sub.method", "lab.sub.fast", "helper", "mine"}
    assert set(found) == modules | {"lab/hidden.py", "lab/odd-name.py", "lab/old/template.py", "helper/named.py"}


DATA = {
    "lab/.w.json": "hidden",
    "lab/w.pyc": "of no source",
    "lab/a/.b/w.json": "in a hidden folder",
    "linked/w.json": "behind a link",
    "linked/deep/w.json": "deeper behind a link",
    "helper/w.json": "of a package that is imported",
    "space/w.json": "of a folder without __init__.py",
}
NO_DATA = (
    "lab/.git/w",
    "lab/.ipynb_checkpoints/w",
    "lab/.venv/w.json",
    "lab/.DS_Store",
    "lab/__pycache__/w",
    "other.json",
)


def test_every_data_file_that_a_plug_in_may_read_moves_its_key(tmp_path: Path) -> None:
    """In its package and in those that it imports, hidden or behind a link."""
    modules = {
        "lab/__init__.py": "",
        "lab/method.py": "import helper, space.module\n",
        "helper/__init__.py": "",
        "space/module.py": "",
    }
    site = tmp_path / "src"
    written(site, {**modules, **DATA, **dict.fromkeys(NO_DATA, "")})
    (site / "lab" / "data").symlink_to(site / "linked", target_is_directory=True)
    (site / "linked" / "again").symlink_to(site / "lab", target_is_directory=True)  # a loop

    def made() -> dict[str, str]:
        return Closure(["lab.method"], within=dict.fromkeys(("lab", "helper", "space"), site)).digests()

    before = made()
    assert set(before) == {
        *("lab", "lab.method", "helper", "space.module"),
        *(name.replace("linked", "lab/data") for name in DATA),
    }
    for name in DATA:
        for _ in edited(site / name):
            assert made() != before, name
    (site / "lab" / "data").unlink()
    (site / "lab" / "data").symlink_to(site / "helper", target_is_directory=True)
    assert made() != before, "the link leads elsewhere"


@pytest.mark.parametrize(
    ("text", "any_name"),
    [
        ("from adbench.config import registry", True),
        ("import adbench.params\nBase = adbench.config.registry.load('methods', 'a' + 'e')", True),
        ("import adbench\nload = getattr(adbench, 'config').registry.load", True),
        ("from adbench.api import load", True),
        ("from adbench.config.cell import registry", True),
        ("import importlib\ndef get(name):\n    return importlib.import_module(f'adbench.methods.{name}')", True),
        ("MODULES = ['adbench.methods.ae']", True),
        ("import adbench.methods.base as base\nBase = base.Method", False),
        ("import importlib\ndef get(name):\n    return importlib.import_module(name)", False),
    ],
)
def test_a_plug_in_that_can_load_by_name_counts_with_all_that_is_built_in(
    text: str, any_name: bool, plugin: Path
) -> None:
    (plugin / "adbench_scaled" / "unused.py").write_text(text)
    (plugin / "beside_scaled.py").write_text("import adbench_scaled.unused\n")
    found = sources.source_files("methods", "scaled").keys()
    modules = {target.partition(":")[0] for target, _ in registry.BUILTIN["methods"].values()}
    assert (modules <= found) == any_name == ("adbench.methods.ae" in found)


def test_what_hands_a_method_its_pixels_and_sets_its_threads_counts() -> None:
    assert {"adbench.datasets.pixels", "adbench.utils.threads"} <= sources.source_files("methods", "zscore").keys()


def test_an_installed_plug_in_counts_with_the_files_of_its_distribution(plugin: Path) -> None:
    record = [f"{path.relative_to(plugin).as_posix()},," for path in plugin.rglob("*") if path.is_file()]
    (plugin / "adbench_scaled-1.0.dist-info" / "RECORD").write_text("\n".join([*record, "../../bin/scaled,,"]))
    (plugin / "other-1.0.dist-info").mkdir()
    (plugin / "other-1.0.dist-info" / "RECORD").write_text("other_library.py,,\n")
    (plugin / "other_library.py").write_text("")
    (plugin / "adbench_scaled" / "network.pth").write_bytes(b"weights")
    (plugin / "__editable__.scaled.pth").write_text("of the installer")
    record += ["adbench_scaled/network.pth,,", "__editable__.scaled.pth,,"]
    (plugin / "adbench_scaled-1.0.dist-info" / "RECORD").write_text("\n".join(record))
    source = plugin / "adbench_scaled" / "method.py"
    source.write_text("import other_library\n" + source.read_text())
    found = sources.source_files("methods", "scaled").keys()
    assert {"beside_scaled", "unrelated", "unrelated.csv", "beside.csv", "adbench_scaled/network.pth"} <= found
    assert not {"other_library", "yaml", "__editable__.scaled.pth"} & found, "another distribution; a library"


def test_too_much_data_is_said(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_DATA", 4)
    with pytest.raises(UserError, match=r"adbench_scaled holds .* of files; .* name it in a parameter"):
        sources.source_files("methods", "scaled")


def test_a_changed_table_is_another_run_and_why_names_it(plugin: Path, slices: Path, tmp_path: Path, cli: Cli) -> None:
    arguments = ("run", "--method", "scaled", "--dataset", "folder", "--data-root", slices, "--device", "cpu")
    where = ("--out", tmp_path / "runs", "--quiet")

    def records() -> list[Path]:
        return sorted((tmp_path / "runs").glob("*/*/*/record.json"), key=lambda path: path.stat().st_mtime_ns)

    assert cli(*arguments, *where)[0] == 0
    assert cli(*arguments, *where)[0] == 0
    assert len(records()) == 1
    (plugin / "adbench_scaled" / "tables" / "weights.json").write_text("[2.0]")
    sources.source_digest.cache_clear()
    assert cli(*arguments, *where)[0] == 0
    first, second = records()
    answer = json.loads(cli("why", second.parent, "--json")[1])
    assert answer["other"] == str(first.parent)
    (difference,) = answer["differences"]
    assert difference["field"] == "method_source"
    assert difference["meaning"] == "other source: adbench_scaled/tables/weights.json"


DATASET = '''
import numpy as np

from adbench.datasets.base import Case, Dataset, DatasetInfo, Stack


class Flat(Dataset):
    """One grey."""

    info = DatasetInfo("flat", "1", ("T1",), "none", "", "", "folder")

    def discover(self, modality):
        return [Case(name, split) for name, split in (("a", "train"), ("b", "test"))]

    def load(self, case, modality):
        there = np.ones((1, 4, 4), bool)
        return Stack(there * np.float32(GREY), there, there, [0])
'''


def test_an_edited_dataset_plug_in_is_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "flat-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flat\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[adbench.datasets]\nflat = flat_dataset:Flat\n")
    monkeypatch.syspath_prepend(tmp_path)
    folders = []
    for grey in (".25", ".25", ".5"):
        (tmp_path / "flat_dataset.py").write_text(DATASET.replace("GREY", grey))
        sys.modules.pop("flat_dataset", None)
        importlib.invalidate_caches()
        for cached in (registry.entries, sources.source_digest):
            cached.cache_clear()
        cls = registry.load("datasets", "flat")
        store = prepare(cls(cls.Params(), None), "T1", tmp_path / "cache")
        assert store.images[np.arange(2)].max() == float(grey)
        folders.append(store.folder)
    assert folders[0] == folders[1] != folders[2]
    del sys.modules["flat_dataset"]
    monkeypatch.undo()
    for cached in (registry.entries, sources.source_digest):
        cached.cache_clear()


def test_a_class_without_a_file_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from adbench.methods.simple import HistEq

    nowhere = type("Nowhere", (HistEq,), {"__module__": "made_of_nothing"})
    monkeypatch.setattr(registry, "load", lambda kind, name: nowhere)
    with pytest.raises(UserError, match=r"the method 'histeq' \(made_of_nothing\) lies in no file"):
        sources.source_files("methods", "histeq")


def test_a_file_that_a_parameter_names_is_read_again_when_it_changes(tmp_path: Path, slices: Path) -> None:
    weights = tmp_path / "vae"
    weights.mkdir()
    (weights / "vae.json").write_text("{}")
    settings = run_config.load(
        None,
        {"method": "madad", "dataset": "folder", "data_root": str(slices), "device": "cpu"},
        [f"madad.autoencoder={weights}"],
    )
    keys = []
    for text in ("{}", "{}", "{ }"):
        (weights / "vae.json").write_text(text)
        (one,) = plan(run_config.cells(settings), tmp_path / "runs", tmp_path / "cache")
        keys.append(one.fit_key)
    assert keys[0] == keys[1] != keys[2]


def test_what_counts_and_measures_is_in_the_key_of_a_run_and_not_in_that_of_a_fit(copy: Path) -> None:
    def measured() -> str:
        return digest(Closure(sources.MEASURE, within={"adbench": copy}).digests())

    assert measured() == sources.measure_digest()
    fit, run = key(copy), measured()
    for name in ("runner/measure.py", "metrics/evaluate.py", "metrics/spatial.py", "metrics/counting.py"):
        for _ in edited(copy / "adbench" / name):
            assert measured() != run, name
            assert key(copy) == fit, name
    for name in (
        "runner/run_cell.py",
        "runner/samples.py",
        "evaluation/pictures.py",
        "metrics/plots.py",
        "leaderboard/board.py",
    ):
        for _ in edited(copy / "adbench" / name):
            assert measured() == run, name
