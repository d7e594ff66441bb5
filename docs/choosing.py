"""Write the tables and the picture of ``docs/choosing.md``, and what runs give the pages of ``docs/methods``.

    python docs/choosing.py          what an author wrote for each method; published numbers beside those of the boards here
    python docs/choosing.py RUNS     and, from finished runs, what training and scoring cost, and their maps of six test slices:
                                     of all on that page, of each with its learning curves on its own

``RUNS`` is the ``--out`` of ``adbench run`` on the test set of a committed board, or several of them. Of each method the newest run
counts, seed 0. Pages of methods that they do not hold stay as they are; ``choosing.md`` shows only those that they hold.
"""

from __future__ import annotations

import argparse
import ast
import csv
import importlib
import inspect
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from method_pages import ROOT, Board, Seen, costs, look, save, show_map, show_truth, table, write

from adbench import api
from adbench.config import registry
from adbench.evaluation.run import Run
from adbench.results.format import several
from adbench.results.names import method_name

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
                name = row["label"].replace(f" [{row['preset']}]", "", 1)
                key = (
                    row["method"],
                    "**here**" if name == row["method"] else f"**here**, `{name}`",
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


def newest(folders: list[Path]) -> list[Run]:
    """The newest run of each method with seed 0, in the order of the registry."""
    found: dict[str, Run] = {}
    for run in sorted(api.load(*folders, device="cpu"), key=lambda run: run.record.created):
        if run.record.seed == 0:
            found[run.record.method.name] = run
    return [found[name] for name in METHODS if name in found]


def cost(runs: list[Run]) -> str:
    rows = [(f"`{method_name(run.record)}`", costs(run.record)) for run in runs]
    return table(["method", *rows[0][1]], [[name, *spent.values()] for name, spent in rows])


def shown(seen: list[Seen], board: Board) -> str:
    """The picture, and which methods it holds."""
    there = {row["method"] for row in board.rows} - {one.run.record.method.name for one in seen}
    others = [f"`{name}`" for name in METHODS if name in there]
    part = seen[0].run.record.test
    rest = (
        f" On the [board](../leaderboards/{board.folder.name}/index.md) and not here: {', '.join(others)}."
        if others
        else ""
    )
    return f"""![Test slices of {part.name} {part.modality}: truth, and the maps of {several(len(seen), "method")}](images/{PICTURE.name})

Here and in the [table of cost](#what-it-costs) are {several(len(seen), "method")}: {", ".join(f"`{one.name}`" for one in seen)}.{rest}"""


def picture(seen: list[Seen]) -> None:
    """Slices chosen by their masks, never by a score: one row each; the truth, then one column a method."""
    columns = min(COLUMNS, len(seen))
    blocks = [seen[k : k + columns] for k in range(0, len(seen), columns)]
    slices = seen[0].slices
    rows = len(slices) * len(blocks)
    tight = ConstrainedLayoutEngine(w_pad=0.005, h_pad=0.005, wspace=0, hspace=0)
    figure = Figure(figsize=(0.95 * (columns + 1), 1.08 * rows + 0.2), dpi=80, layout=tight)
    axes = figure.subplots(rows, columns + 1, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, block in enumerate(blocks):
        part = axes[number * len(slices) : (number + 1) * len(slices)]
        part[0][0].set_title("truth", fontsize=7)
        for row, one in zip(part, slices, strict=True):
            show_truth(row[0], one)
        for column, method in enumerate(block, 1):
            part[0][column].set_title(method.name.replace("[", "\n["), fontsize=7)
            for row, one in zip(part, method.slices, strict=True):
                show_map(row[column], one, method.scale)
    save(figure, PICTURE)
    print(f"{PICTURE}: {', '.join(one.name for one in seen)}; slices of {', '.join(one.case for one in slices)}")


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
    parser.add_argument("runs", nargs="*", type=Path, help="folders with finished runs of one test set")
    args = parser.parse_args()
    put("lines", lines())
    put("published", published())
    if args.runs:
        runs = newest(args.runs)
        board, seen = Board.of(runs[0].record), look(runs)
        put("seen", shown(seen, board))
        put("cost", cost(runs))
        picture(seen)
        for one in seen:
            write(one, board, ROOT / "docs")


if __name__ == "__main__":
    main()
