"""Hook of MkDocs: takes in the generated pages, and files of the repository outside ``docs``."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.generate import papers, parts, reference

ROOT = Path(__file__).parents[2]
PLACES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "multirun_sweeps/README.md": "table-files.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/demo.ipynb": "demo.ipynb",
    "examples/wandb_sweep.yaml": "wandb_sweep.yaml",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE.txt",
}
"""Files of the repository that are pages of the site as they are, and where."""
RECIPES = {
    "A component": "how-to/component.md",
    "An attack": "how-to/attack.md",
    "A memory": "how-to/memory.md",
    "A model": "how-to/model.md",
    "A recipe": "how-to/recipe.md",
    "A launcher": "how-to/launcher.md",
    "A table": "how-to/table.md",
}
"""Sections of CONTRIBUTING.md that have pages of their own."""
FOLDERS = {
    "conf/component": "components/index.md",
    "conf/method": "methods/index.md",
    "multirun_sweeps": "papers/index.md",
}
"""Folders whose files have pages, and the page that lists these."""
GENERATED = ("components", "methods", "papers", "reference")
SOURCES = {place: file for file, place in PLACES.items()} | dict.fromkeys(
    RECIPES.values(), "CONTRIBUTING.md"
)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s]+)")
"""Target of a relative link, its anchor included."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is generated, and what lies outside ``docs``."""
    made = parts.pages() | papers.pages() | reference.pages() | recipes()
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    for file, place in PLACES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / file)))
    return files


def recipes() -> dict[str, str]:
    """The sections of CONTRIBUTING.md that are how-tos, as pages."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    return {place: _section(text, title)[1:] for title, place in RECIPES.items()}


def _section(text: str, title: str) -> str:
    """A section with its heading, up to the next one."""
    return text[text.index(f"## {title}\n") :].partition("\n\n## ")[0] + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links of files in the repository lead to pages of the site."""
    place = page.file.src_uri
    if place.split("/")[0] in GENERATED:
        return markdown
    if place == PLACES["CONTRIBUTING.md"]:
        for title in RECIPES:
            anchor = title.lower().replace(" ", "-")
            short = f"## {title}\n\n[{title}](CONTRIBUTING.md#{anchor})\n"
            markdown = markdown.replace(_section(markdown, title), short)
    source = SOURCES.get(place, f"docs/{place}")
    return LINK.sub(lambda found: target_of(found[1], source, place), markdown)


def target_of(link: str, source: str, place: str) -> str:
    """Where a link of the file ``source`` leads from its ``place`` in the site."""
    link, _, anchor = link.partition("#")
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    target = {**PLACES, **FOLDERS}.get(file, file.removeprefix("docs/"))
    for title, recipe in RECIPES.items():
        if file == "CONTRIBUTING.md" and anchor == title.lower().replace(" ", "-"):
            target, anchor = recipe, ""
    found = posixpath.relpath(target, posixpath.dirname(place) or ".")
    return f"{found}#{anchor}" if anchor else found
