"""The documents keep their word: links lead somewhere, files exist, the Python block runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import ablation
from ablation.config.folders import conf_dir
from ablation.sweeps.spaces import search_names
from ablation.sweeps.tables import table_names
from tests.support.documents import DOCUMENTS, README, ROOT, blocks, without_blocks

NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
TABLES = table_names([ROOT / "multirun_sweeps"])
FOLDERS = ("ablation", "conf", "tests", "docs", "benchmarks", "multirun_sweeps", "hydra_plugins")


def anchors(path: Path) -> set[str]:
    """What a heading is linked by: lower case, no punctuation, hyphens for blanks."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(path.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_relative_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(path.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = path.parent / place if place else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_file_that_is_named_exists(path):
    for name in re.findall(r"`([\w./]+)`", without_blocks(path.read_text("utf-8"))):
        if name.split("/")[0] in FOLDERS and "/" in name:
            assert (ROOT / name).exists(), name


def test_the_python_block_attacks_a_network():
    (code,) = blocks(README.read_text("utf-8"), "python")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.findall(r"^(\w+): [\d.]+% of 20 images$", done.stdout, re.M) == [
        "clean",
        "pgd20",
        "aa",
    ]


def test_the_figure_is_small():
    figures = list((ROOT / "docs" / "figures").glob("*.png"))
    assert figures
    assert all(path.stat().st_size < 200_000 for path in figures)


def test_the_groups_are_all_listed():
    text = (ROOT / "docs" / "running.md").read_text("utf-8")
    groups = ("data", "model", "method", "recipe", "optim", "schedule", "average", "evaluation")
    for group in (*groups, "scale"):
        (row,) = re.findall(rf"^\| `{group}=` \| (.*?)(?:; see .*)? \|$", text, re.M)
        expected = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        assert sorted(row.split(", ")) == expected, group
    (row,) = re.findall(r"^\| `table=` \| (.*) \|$", text, re.M)
    assert sorted(row.split(", ")) == TABLES
    (row,) = re.findall(r"^\| `search=` \| (.*) \|$", text, re.M)
    assert sorted(row.split(", ")) == search_names([ROOT / "multirun_sweeps"])
    listed = re.findall(r"^\| `(\w+)` \| .* \| .* \|$", text, re.M)
    assert sorted(listed) == sorted(path.name for path in (conf_dir() / "component").iterdir())


def test_the_map_shows_every_room():
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    root = Path(ablation.__file__).parent
    files = [path.name for path in root.glob("*.py") if path.name[0] != "_"]
    rooms = [f"{path.parent.name}/" for path in root.glob("*/__init__.py")]
    assert [name for name in files + rooms if f"`{name}`" not in text] == []


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert len(citation["references"]) == 4
    (bibtex,) = blocks(README.read_text("utf-8"), "bibtex")
    assert f"{{{project['version']}}}" in bibtex
