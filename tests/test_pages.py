"""The pages that are made of the code: nothing is left out, and what they say is so."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from hydra import initialize_config_dir

from ablation.config.compose import Composer
from ablation.config.folders import component_names, conf_dir, register_components
from ablation.config.validation import load
from docs.generate import cost, facts, papers, parts
from docs.generate.markdown import comment, escaped, prose
from tests.support.options import CONF, REFUSED, options

METHODS = options("method")


@pytest.mark.parametrize("name", component_names())
def test_a_component_has_formula_deviations_and_parameters(name):
    assert len(comment(CONF / "component" / name / "enabled.yaml")) > 1
    text = parts.component_page(name, None)
    titles = re.findall(r"^## (.*)$", text, re.M)
    assert titles[:3] == ["Formula and source", "Deviations and readings", "Options"]
    assert titles[-1] == "Rows that use it"
    for cls in parts.classes_of(name).values():
        for field in fields(cls):
            assert f"| `component.{name}.{field.name}` |" in text


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_formula_and_deviations(name):
    text = parts.method_page(name)
    head = text.partition("## Formula and source\n")[2].partition("## Deviations and readings\n")
    assert all(part.strip() for part in head)


def test_every_table_is_on_a_page_with_its_cost():
    pages = [*map(papers.paper_page, papers.PAPERS), papers.own_page()]
    found = [name for text in pages for name in re.findall(r"^## .* \{: #(\w+) \}$", text, re.M)]
    assert sorted(found) == sorted(facts.tables()) == sorted(cost.recorded())


def test_rows_are_known_by_what_they_switch_on():
    uses = {(use.table, use.arm): use for use in facts.uses()}
    assert uses["lma_table12", "option_c"].components == {
        "boosted_cross_entropy": "enabled",
        "margin_loss": "both",
        "ema_logits": "enabled",
    }
    assert "ema_logits" not in uses["lma_table12", "option_d"].components


def test_formulas_are_shown_as_they_are_written():
    assert escaped("z'_j * |w| < `a_b`") == r"z'\_j \* \|w\| &lt; `a_b`"
    text = prose(["Two lines\nof text:\n  key=1\nand more", "- one\n  item\n- another"])
    assert text.split("\n\n") == [
        "Two lines of text:",
        "```\nkey=1\n```",
        "and more",
        "- one item",
        "- another",
    ]


@pytest.mark.slow
def test_rows_have_the_components_of_their_configs():
    register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        composer = Composer()
        for use in facts.uses()[::7]:
            options = dict.fromkeys(facts.preset_components(use.method), facts.OFF)
            options |= use.components
            chosen = [f"component/{name}={option}" for name, option in options.items()]
            config = load(composer.plain([f"method={use.method}", *chosen, "optim.weight_decay=0"]))
            on = {name for name, part in config.component.items() if part is not None}
            assert on == set(use.components), use


@pytest.mark.slow
def test_refusals_are_those_of_the_program():
    found = {
        (method, name)
        for name, refused in facts.refusals().items()
        for problem, methods in refused.methods.items()
        for method in methods
        if not problem.startswith("optim.")  # told together with its remedy
    }
    assert found == {(method, name) for method, names in REFUSED.items() for name in names}


@pytest.mark.slow
def test_costs_are_those_of_the_overview():
    names = ["demo", "lma_table2", "mwpb_small"]
    recorded = cost.recorded()
    assert cost.costs(names) == {name: recorded[name] for name in names}
