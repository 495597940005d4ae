"""The matrix of transfer attacks: what is averaged, what is never mixed, what is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ablation.reports.groups import compare_runs
from ablation.reports.publish import UNDRAWN
from ablation.reports.style import save
from ablation.reports.transfer import csv, figure, matrices
from tests.support.configs import compose_config
from tests.support.fake_runs import fake_evaluation, fake_run

METHODS = ("standard", "at", "trades", "mart", "gairat", "wat")
SET = ("evaluation=quick", "~evaluation.attacks.fgsm")


def trained(folder, methods, seeds=(0,)):
    """By method and seed the config of a run that was attacked by its own examples."""
    configs = {
        (method, seed): compose_config(
            f"method={method}", f"seed={seed}", f"runs_dir={folder}", *SET
        )
        for method in methods
        for seed in seeds
    }
    for place, config in enumerate(configs.values()):
        fake_run(config, {"clean": 95, "pgd20": 10 * place})
    return configs


def attack(configs, value, pairs=None, **more):
    """Every run by every other one's examples."""
    for mine, config in configs.items():
        for theirs, other in configs.items():
            if mine != theirs and (pairs is None or (mine, theirs) in pairs):
                given = {"clean": 95, "pgd20": value(mine, theirs)}
                fake_evaluation(config, given, source=other.run_name, **more)


def compared(configs):
    return compare_runs([config.run_dir for config in configs.values()], ["method"])


def test_a_cell_is_the_mean_over_pairs_and_own_stands_apart(tmp_path):
    configs = trained(tmp_path, ("at", "trades"), (0, 1))
    attack(configs, lambda mine, theirs: 40 + 10 * mine[1] + 20 * theirs[1])
    (matrix,) = matrices(compared(configs))
    assert matrix.column == "pgd20"
    assert matrix.facts == "eps 0.1, n=200"
    assert list(matrix.sources) == list(matrix.rows) == ["at", "trades"]
    # at: own 0 and 10; by its other seed's 60 (0 from 1) and 50 (1 from 0).
    np.testing.assert_allclose(matrix.numbers(), [[5, 55, 55], [25, 55, 55]])
    assert [len(matrix.values["at", key]) for key in ("at", "trades")] == [2, 4]


def test_transferred_numbers_are_in_no_column_of_the_table(tmp_path):
    configs = trained(tmp_path, ("at", "trades"))
    before = compared(configs)
    attack(configs, lambda *_: 70)
    after = compared(configs)
    assert after.columns == before.columns == ("clean", "pgd20")
    for row, other in zip(before.rows, after.rows, strict=True):
        assert row.cells["pgd20"].samples == other.cells["pgd20"].samples


def test_only_one_form_of_an_attack_is_in_a_matrix(tmp_path):
    configs = trained(tmp_path, ("at", "trades", "mart"))
    attack(configs, lambda *_: 70)
    first, second, _ = configs
    other = {
        key: replace(config, evaluation=replace(config.evaluation, eps=0.2))
        for key, config in configs.items()
    }
    attack(other, lambda *_: 20, {(first, second)})
    (matrix,) = matrices(compared(configs))
    assert {value for values in matrix.values.values() for value in values} == {70}
    assert np.isnan(matrix.numbers()[0, 1])  # nobody attacked at by at


def test_a_source_that_is_no_row_is_named(tmp_path):
    configs = trained(tmp_path, ("at",))
    config = configs["at", 0]
    fake_evaluation(config, {"clean": 95, "pgd20": 60}, source="digits-x-at-s0-0123456789")
    (matrix,) = matrices(compared(configs))
    assert matrix.strangers() == ["2 digits-x-at-s0-0123456789"]
    text = matrix.text()
    assert text.splitlines()[0] == "PGD-20 accuracy by examples of other runs (eps 0.1, n=200)"
    assert "own" in text
    assert "60.00" in text
    assert csv([matrix]).splitlines()[1:] == [
        'pgd20,"eps 0.1, n=200",at,own,0.0000,1',
        'pgd20,"eps 0.1, n=200",at,digits-x-at-s0-0123456789,60.0000,1',
    ]


@pytest.mark.parametrize("count", [2, 6])
def test_every_number_is_drawn_where_it_belongs(tmp_path, count):
    configs = trained(tmp_path, METHODS[:count])
    places = {key: place for place, key in enumerate(configs)}
    attack(configs, lambda mine, theirs: 50 + 5 * places[mine] + places[theirs])
    comparison = compared(configs)
    found = matrices(comparison)
    drawn = figure(comparison, found)
    assert drawn is not None
    drawn.draw_without_rendering()
    (axes,) = drawn.axes
    written = {text.get_position(): text.get_text() for text in axes.texts}
    expected = {
        (j, i): "-" if np.isnan(value) else f"{value:.1f}"
        for (i, j), value in np.ndenumerate(found[0].numbers())
    }
    assert written == expected
    assert len(expected) == count * (count + 1)
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ["own", *map(str, range(1, count + 1))]
    for path in save(drawn, tmp_path / "transfer_matrix"):
        assert path.stat().st_size > 1000


def test_without_transfer_attacks_nothing_is_drawn_and_it_is_said(tmp_path):
    configs = trained(tmp_path, ("at",))
    comparison = compared(configs)
    assert matrices(comparison) == []
    assert figure(comparison, []) is None
    assert "attack_from" in UNDRAWN["transfer_matrix"]
