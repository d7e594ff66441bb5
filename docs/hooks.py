"""Pages that mkdocs makes: the command line reference and the protocols from the code, the tutorials from notebooks."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.structure.files import File

FRAME = re.compile(r'<style.*?</style>\n?| border="1" class="dataframe"', re.DOTALL)  # of pandas: the theme has a style
LINK = re.compile(r"\[([^\[\]]+)\]\((\.\./[^()\s]+)\)")


class _Notebook(File):
    """A page whose source is a notebook: links to the file lead to it."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Make pages of the notebooks, in place of files to download."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        cells = json.loads(Path(file.abs_src_path).read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join(part for cell in cells for part in _cell(cell))
        files.remove(file)
        files.append(_Notebook.generated(config, file.src_uri, content=text))
    return files


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    """Markdown of a cell and of what it printed and drew."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```{'bash' if source.startswith('!') else 'python'}\n{source}\n```"
    for output in cell["outputs"]:
        data = {kind: "".join(made) for kind, made in output.get("data", {}).items()}
        if "image/png" in data:
            picture = data["image/png"].replace("\n", "")
            yield f'<img class="output" alt="What the code above draws" src="data:image/png;base64,{picture}">'
        elif "text/html" in data:
            yield FRAME.sub("", data["text/html"])
        elif "text/markdown" in data:
            yield data["text/markdown"]
        else:
            text = "".join(output.get("text", "")) or data["text/plain"]
            yield f'<pre class="output"><code>{html.escape(text, quote=False)}</code></pre>'


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Put what the code says where a page asks for it; of links to files that are not on the site the text stays."""
    for mark, made in (("<!-- command line -->", _command_line), ("<!-- protocols -->", _protocols)):
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(made()))
    here = Path(config.docs_dir, page.file.src_uri).parent
    return LINK.sub(lambda link: link[0] if _is_on_the_site(here, link[2], config.docs_dir) else link[1], markdown)


def _is_on_the_site(here: Path, target: str, docs: str) -> bool:
    """Whether a link can stay: not one to a file of the repository that is outside of ``docs``."""
    file = (here / target.partition("#")[0]).resolve()
    return file.is_relative_to(Path(docs).resolve()) or not file.is_file()


def _command_line() -> Iterator[str]:
    from adbench import cli
    from adbench.cli.app import app

    assert cli  # importing it added every verb
    yield from _verbs(typer.main.get_command(app), "adbench")


def _verbs(command: Any, name: str) -> Iterator[str]:
    for key, verb in command.commands.items():
        path = f"{name} {key}"
        if hasattr(verb, "commands"):
            yield from _verbs(verb, path)
            continue
        yield from (f"## {path}", "", verb.help or "", "")
        shown = [parameter for parameter in verb.params if parameter.name != "help" and not parameter.hidden]
        if shown:
            yield from ("| option | default | what it does |", "|---|---|---|", *map(_row, shown), "")
        if verb.epilog:
            lines = [line.strip() for line in verb.epilog.splitlines() if line.strip()]
            examples = [line for line in lines if not line.endswith(":")]
            yield from ("```", *(line.removeprefix("Example:").strip() for line in examples), "```", "")


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{name if name.startswith('-') else name.upper()}`" for name in parameter.opts)
    default = "" if parameter.default in (None, False, [], ()) else f"`{parameter.default}`"
    meaning = " ".join((parameter.help or "").split()).replace("|", "\\|").replace("<", "&lt;")
    return f"| {names} | {default} | {meaning} |"


def _protocols() -> Iterator[str]:
    from adbench.config.protocols import PROTOCOLS

    for protocol in PROTOCOLS.values():
        yield from (f"## {protocol.name}", "", f"{protocol.summary}. Version {protocol.version}.", "")
        for field, value in protocol.as_dict().items():
            if field not in ("name", "version", "summary") and value not in (None, ""):
                yield f"* **{field}**: {', '.join(value) if isinstance(value, list) else value}"
        yield ""
