"""Write the tables and the picture of ``docs/choosing.md``.

    python docs/choosing.py          what an author wrote for each method; published numbers beside those of the boards here
    python docs/choosing.py RUNS     and, from finished runs, what training and scoring cost, and their maps of six test slices

``RUNS`` is the ``--out`` of ``adbench run`` on one test set. Of each method the newest run counts, seed 0.
"""

from __future__ import annotations

import argparse
import ast
import csv
import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from adbench import api
from adbench.config import registry
from adbench.datasets.contact_sheet import brain_box
from adbench.evaluation.run import Run
from adbench.runner.samples import choose_positions

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "choosing.md"
PICTURE = ROOT / "docs" / "images" / "choosing.png"
METHODS = tuple(registry.BUILTIN["methods"])
COLUMNS = 9  # of the picture
# Names in reported.csv -> methods here; the other rows are of methods that are not here.
PUBLISHED = {
    "MAD-AD": "madad", "REFLECT": "reflect", "AE (dense)": "ae", "VAE (restoration)": "vae", "DDPM": "ddpm", "pDDPM": "pddpm",
    "mDDPM": "pddpm", "cDDPM": "pddpm", "ANDi": "andi", "THOR": "thor", "Disyre": "restore", "DISYRE v2": "restore",
    "IterMask": "itermask", "FAE": "features", "PatchCore": "features", "histogram-equalised threshold": "histeq",
}  # fmt: skip


def table(heads: list[str], rows: Iterable[Iterable[object]], *, numbers: bool = True) -> str:
    rule = ["---", *["--:" if numbers else "---"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [heads, rule, *rows])


def lines() -> str:
    """Lines of what defines a method, and of them those of its parameters, presets and search space."""
    rows = []
    for name in METHODS:
        cls = registry.load("methods", name)
        package = importlib.import_module(cls.__module__.rpartition(".")[0])
        alone = Path(str(package.__file__)).parent if package.__name__.endswith(f".{name}") else None
        files = sorted(alone.glob("*.py")) if alone else [Path(inspect.getfile(cls))]
        shared = sum(registry.load("methods", other).__module__ == cls.__module__ for other in METHODS) > 1
        total = parameters = 0
        for file in files:
            text = file.read_text(encoding="utf-8")
            nodes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
            own = [node for node in nodes if node.name in (cls.__name__, cls.Params.__name__)]
            total += sum(map(_length, own)) if shared else len(text.splitlines())
            stated = nodes if file.name == "params.py" else [n for n in own if n.name == cls.Params.__name__]
            parameters += sum(map(_length, stated)) + sum(
                _length(part)
                for node in own
                for part in node.body
                if _name(part) in ("presets", "smoke", "search_space")
            )
        where = alone.relative_to(ROOT) if alone else files[0].relative_to(ROOT)
        rows.append([f"`{name}`", f"`{where}`", total, parameters])
    return table(["method", "where", "lines", "of them parameters, presets, search space"], rows)


def _length(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return (node.end_lineno or node.lineno) - min([node.lineno, *(each.lineno for each in decorators)]) + 1


def _name(node: ast.stmt) -> str:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return node.name if isinstance(node, ast.FunctionDef) else ""


def published() -> str:
    """Rows of one source and protocol are one row."""
    with open(ROOT / "leaderboards" / "reported.csv", encoding="utf-8") as file:
        reported = [row for row in csv.DictReader(file) if row["method"] in PUBLISHED]
    found: dict[tuple[str, ...], list[str]] = {}
    for row in reported:
        protocol = f"{row['protocol']}; trained on {row['training_source']}"
        key = PUBLISHED[row["method"]], row["method"], row["metric"], protocol, f"{row['source']} ({row['how_read']})"
        found.setdefault(key, []).append(f"{row['dataset']} {row['modality']} {row['value_percent']}")
    for path in sorted((ROOT / "leaderboards").glob("*/table.csv")):
        with open(path, encoding="utf-8") as file:
            for row in csv.DictReader(file):
                protocol = f"pooled voxels of the brain; trained on {row['trained_on']}"
                key = (
                    row["method"],
                    "**here**",
                    "auprc",
                    protocol,
                    f"[{path.parent.name}](../leaderboards/{path.parent.name}/index.md)",
                )
                low, high = (f"{100 * float(row[f'auprc_{end}'] or 'nan'):.0f}" for end in ("low", "high"))
                number = f"{row['modality']} **{100 * float(row['auprc']):.1f}** [{low}, {high}]"
                found.setdefault(key, []).append(number)
    rows = [
        [f"`{method}`", known_as, metric, "; ".join(numbers), protocol, source]
        for (method, known_as, metric, protocol, source), numbers in sorted(
            found.items(), key=lambda item: METHODS.index(item[0][0]) if item[0][0] in METHODS else len(METHODS)
        )
    ]
    return table(["method", "as", "metric", "data and %", "protocol", "source"], rows, numbers=False)


def newest(folder: Path) -> list[Run]:
    """The newest run of each method with seed 0, in the order of the registry."""
    found: dict[str, Run] = {}
    for run in sorted(api.load(folder, device="cpu"), key=lambda run: run.record.created):
        if run.record.seed == 0:
            found[run.record.method.name] = run
    return [found[name] for name in METHODS if name in found]


def cost(folder: Path) -> str:
    rows = []
    for run in newest(folder):
        record = run.record
        counted, rate = record.method.parameters, 1 / max(record.timing["score_per_slice"], 1e-9)
        trained = f"{record.timing['fit'] / 60:.1f}" if record.fit["steps"] else "–"
        rows.append([f"`{record.method.name}`", f"{counted:,}", record.fit["steps"], trained, f"{rate:,.0f}"])
    return table(["method", "numbers learned", "steps", "training, min", "scoring, slices/s"], rows)


def picture(folder: Path) -> None:
    """Six slices chosen by their masks, never by a score: one row each; input and truth, then one column a method."""
    from matplotlib.figure import Figure

    runs = newest(folder)
    test = runs[0].data.test
    positions = choose_positions(test)
    cases = [test.cases[test.case_index[position]] for position in positions]
    found: dict[str, dict[int, np.ndarray]] = {}
    shown: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for run in runs:
        if run.record.test.digest != runs[0].record.test.digest:
            raise SystemExit(f"{run.folder} has other test slices than {runs[0].folder}: give one board's runs.")
        maps = found.setdefault(run.record.method.name, {})
        for volume in run.each(cases, reconstructions=False):
            for at, position in enumerate(volume.positions.tolist()):
                if position in positions:
                    maps[position] = volume.maps[at]
                    shown[position] = volume.image[at], volume.brain[at], volume.lesion[at]
    columns = min(COLUMNS, len(found))
    blocks = [list(found)[k : k + columns] for k in range(0, len(found), columns)]
    rows = len(cases) * len(blocks)
    figure = Figure(figsize=(0.95 * (columns + 1), 1.08 * rows + 0.2), dpi=80, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.005, h_pad=0.005, wspace=0, hspace=0)  # type: ignore[union-attr]
    axes = figure.subplots(rows, columns + 1, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, names in enumerate(blocks):
        part = axes[number * len(cases) : (number + 1) * len(cases)]
        part[0][0].set_title("truth", fontsize=7)
        for row, position in zip(part, positions, strict=True):
            image, brain, lesion = shown[position]
            frame = brain_box(brain)
            row[0].imshow(image[frame], cmap="gray", vmin=0, vmax=1)
            if lesion.any():
                row[0].contour(lesion[frame], levels=[0.5], colors="red", linewidths=0.8)
        for column, name in enumerate(names, 1):
            part[0][column].set_title(name, fontsize=7)
            inside = np.concatenate([found[name][position][shown[position][1]] for position in positions])
            low, high = np.percentile(inside, [1, 99.5])
            for row, position in zip(part, positions, strict=True):
                brain = shown[position][1]
                values = np.where(brain, found[name][position], np.nan)[brain_box(brain)]
                row[column].imshow(values, cmap="inferno", vmin=low, vmax=max(high, low + 1e-9))
    figure.savefig(PICTURE, metadata={"Software": None})
    _fewer_colours()
    print(f"{PICTURE}: {', '.join(found)}; slices of {', '.join(cases)}")


def _fewer_colours() -> None:
    """A palette of 128 colours: a third of the bytes."""
    from PIL import Image

    with Image.open(PICTURE) as opened:
        reduced = opened.convert("RGB").quantize(128)
    reduced.save(PICTURE, optimize=True)


def put(name: str, text: str) -> None:
    """``text`` between the marks called ``name`` of the page."""
    page = PAGE.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    if start not in page or end not in page:
        raise SystemExit(f"{PAGE} has no marks {start.strip()} and {end.strip()}.")
    before, rest = page.split(start, 1)
    PAGE.write_text(before + start + text + end + rest.split(end, 1)[1], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=Path, help="folder with finished runs of one test set")
    args = parser.parse_args()
    put("lines", lines())
    put("published", published())
    if args.runs is not None:
        put("cost", cost(args.runs))
        picture(args.runs)


if __name__ == "__main__":
    main()
