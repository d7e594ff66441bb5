"""``adbench list``, ``describe``, ``doctor`` and ``test``: what is installed, and whether it works."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from adbench.cli.app import Json, app
from adbench.errors import UserError

DISTRIBUTION = "adbench-mri"


@app.command(name="list", epilog="Example:  adbench list methods")
def list_(
    kind: Annotated[str, typer.Argument(help="methods, datasets, protocols or metrics.")],
    json_: Json = False,
) -> None:
    """List methods, datasets, protocols or metrics, plug-ins included; one that cannot be loaded is shown with the reason."""
    from adbench.cli.describe import listing

    rows = listing(kind)
    if json_:
        from adbench.utils.console import print_json

        print_json(rows)
        return
    from adbench.utils.console import table

    columns = [("name", "left"), ("what it is", "left"), ("from", "left"), ("status", "left")]
    cells = [[row["name"], row["summary"], row["origin"], row["problem"] or "available"] for row in rows]
    caption = "More about one: adbench describe NAME"
    if kind == "metrics":
        columns[1:1] = [("heading", "left"), ("better", "left"), ("", "left")]
        for cell, row in zip(cells, rows, strict=True):
            unit = f" ({row['unit']})" if row["unit"] else ""
            cell[1:1] = [row["heading"] + unit, "less" if row["less_is_better"] else "more"]
            cell.insert(3, "oracle" if row["oracle"] else "optional" if row["group"] == "optional" else "")
        caption = f"Optional ones are measured when asked for: adbench run --metrics NAME. {caption}"
    table(kind, columns, cells, caption=caption)


@app.command(
    epilog="Examples:\n\n  adbench describe madad\n\n  adbench describe phantom\n\n"
    "  adbench describe --all --markdown --out docs/methods"
)
def describe(
    name: Annotated[str | None, typer.Argument(help="A method, dataset, metric or protocol.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every built-in method; with --markdown --out.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of a method as Markdown.")] = False,
    out_: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the Markdown pages, one a method; what runs gave a page stays in it."),
    ] = None,
    json_: Json = False,
) -> None:
    """Describe one method, dataset, metric or protocol: what it does, its parameters with defaults, units and sources."""
    from adbench.cli.describe import description, scoring_note, sections

    if markdown or all_:
        _pages(name, all_, markdown, out_)
        return
    if name is None:
        raise UserError("Name what to describe: adbench describe madad. `adbench list methods` shows the methods.")

    what = description(name)
    if json_:
        from adbench.utils.console import print_json

        print_json(what)
        return
    from adbench.utils.console import out, table

    out.print(f"{what['kind']} {what['name']}", style="bold")
    out.print(what["doc"], markup=False)
    for key, value in what["facts"].items():
        out.print(f"{key}: {value}", markup=False, soft_wrap=True)
    if what["card"]:
        for heading, lines in sections(what["card"]):
            out.print(f"\n{heading}", style="bold")
            for line in lines:
                out.print(f"  {line}", markup=False)
    if what["params"]:
        presets = list(what["presets"])
        columns = [("parameter", "left"), ("type", "left"), ("default", "right"), *((p, "right") for p in presets)]
        columns += [("unit", "left"), ("meaning", "left"), ("source", "left")]
        rows = []
        for p in what["params"]:
            special = [str(what["presets"][q].get(p["name"], "")) for q in presets]
            rows.append([p["name"], p["type"], str(p["default"]), *special, p["unit"], p["doc"], p["source"]])
        only = scoring_note(what["params"]).replace("`", "")
        table("parameters", columns, rows, caption=f"Set one with --set {what['scope']}.NAME=VALUE. {only}".rstrip())


def _pages(name: str | None, every: bool, markdown: bool, folder: Path | None) -> None:
    from adbench.cli.describe import page, write_pages
    from adbench.utils.console import say, write

    if every and (name or not markdown or folder is None):
        raise UserError("--all writes the pages of the built-in methods: adbench describe --all --markdown --out DIR.")
    if not every and name is None:
        raise UserError("Name a method: adbench describe thor --markdown.")
    if folder is not None:
        for path in write_pages(folder, name):
            say(str(path))
    elif name is not None:
        write(page(name))


@app.command(epilog="Example:  adbench doctor")
def doctor(json_: Json = False) -> None:
    """Check the installation: versions, device, data roots, plug-ins, broken packages, and another package called adbench."""
    from adbench.utils.console import print_json, table

    facts = list(examine())
    problems = sum(verdict != "ok" for _, _, verdict in facts)
    if json_:
        keys = ("what", "found", "verdict")
        print_json({"findings": [dict(zip(keys, one, strict=True)) for one in facts], "problems": problems})
    else:
        table("adbench doctor", [("what", "left"), ("found", "left"), ("verdict", "left")], facts)
    if problems:
        raise typer.Exit(1)


def examine() -> Iterator[tuple[str, str, str]]:
    """(what, what was found, "ok" or "problem: ...") of everything that a run relies on; imports torch, which takes seconds.

    What cannot even be looked at is a problem of its own.
    """
    for check in (_packages, _device, _disk, _data, _plugins):
        try:
            for what, found, problem in check():
                yield what, str(found), f"problem: {problem}" if problem else "ok"
        except Exception as error:  # a broken environment may raise anything, and the other checks still tell something
            yield check.__name__.strip("_"), "unknown", f"problem: {type(error).__name__}: {error}"


def _packages() -> Iterator[tuple[str, object, str]]:
    import platform
    from importlib.metadata import distributions

    import adbench
    from adbench.results.provenance import package_versions
    from adbench.utils import installed

    yield "adbench", f"{adbench.__version__} in {Path(adbench.__file__).parent}", ""
    other = next(
        iter(distributions(name="adbench")), None
    )  # another project on PyPI that installs the same import name
    way_out = f"pip uninstall adbench && pip install --force-reinstall --no-deps {DISTRIBUTION}"
    yield (
        "other distribution named adbench",
        "not installed" if other is None else f"adbench {other.version}",
        "" if other is None else f"it installs over the same import name; run: {way_out}",
    )
    yield "Python", platform.python_version(), "" if sys.version_info >= (3, 11) else "needs 3.11 or newer"
    for name, version in package_versions().items():
        yield name, version or "not installed", "" if version else f"pip install {DISTRIBUTION}"
    for place, why in installed.broken().items():
        yield "broken package", place, f"{why}; install it again, or remove it"


def _device() -> Iterator[tuple[str, object, str]]:
    from adbench.results.provenance import processor

    try:
        import torch
    except Exception as error:  # no torch, or one whose libraries do not load
        yield "device", "unknown", f"torch cannot be imported ({type(error).__name__}: {error})"
        return
    if not torch.cuda.is_available():
        yield "device", f"CPU ({processor()}), no CUDA device seen", ""
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"device cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", ""


def _disk() -> Iterator[tuple[str, object, str]]:
    from adbench.config.run_config import default_cache

    yield "CPU cores", os.cpu_count(), ""
    cache = default_cache()
    there = next(parent for parent in [cache, *cache.absolute().parents] if parent.exists())
    free, writable = shutil.disk_usage(there).free / 2**30, os.access(there, os.W_OK)
    problem = (
        "" if writable and free > 5 else f"{'less than 5 GiB free' if writable else 'not writable'}; set ADBENCH_CACHE"
    )
    yield "cache of slice stores", f"{cache} ({free:.0f} GiB free)", problem


def _data() -> Iterator[tuple[str, object, str]]:
    from adbench.config import registry
    from adbench.config.run_config import DATA_VARIABLE

    root = os.environ.get(DATA_VARIABLE)
    yield DATA_VARIABLE, root or "not set", "" if not root or Path(root).is_dir() else "no such folder"
    for entry in registry.entries("datasets").values():
        if root and not entry.problem and (Path(root) / entry.name).is_dir():
            yield f"data of {entry.name}", Path(root) / entry.name, ""


def _plugins() -> Iterator[tuple[str, object, str]]:
    from adbench.cli.describe import KINDS
    from adbench.config import registry

    for kind in KINDS:
        for entry in registry.entries(kind).values():
            if entry.origin != "built-in":
                yield f"plugin {kind[:-1]} {entry.name}", entry.origin, registry.examined(entry)[1]


@app.command(
    name="test",
    epilog="Examples:\n\n  adbench test histeq\n\n  adbench test my_method --set steps=20\n\n  adbench test hd95",
)
def conformance(
    name: Annotated[str, typer.Argument(help="A method, dataset or metric, yours included.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of it.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the dataset lies.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    json_: Json = False,
) -> None:
    """Check a method, dataset or metric against its contract, rule by rule; exit 1 when one is broken."""
    from dataclasses import asdict

    from adbench.cli.describe import conformance as check

    findings = check(name, set_ or [], data_root, device)
    if json_:
        from adbench.utils.console import print_json

        print_json([asdict(finding) for finding in findings])
    else:
        from adbench.utils.console import err, table

        rows = [(f.rule, f"broken: {f.problem}" if f.problem else "holds", f.asks) for f in findings]
        table(f"contract of {name}", [("rule", "left"), ("verdict", "left"), ("it asks", "left")], rows)
        for finding in findings:
            if finding.trace:
                err.print(f"\n{finding.rule}:\n{finding.trace}", markup=False)
    if any(finding.problem for finding in findings):
        raise typer.Exit(1)


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def convert(ctx: typer.Context) -> None:
    """Name the script that converts the published autoencoder of MAD-AD."""
    raise UserError(
        "`adbench convert` is a script of its own now: "
        "python examples/convert_madad_vae.py vae.pt --out madad-vae, in the source folder of adbench."
    )
