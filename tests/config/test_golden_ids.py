"""No run that is on a disk may be lost: what is asked for keeps its identity."""

from __future__ import annotations

import pytest

from ablation.runs.directory import VOLATILE
from tests.support import golden
from tests.support.configs import compose_config

SHARE = 24
"""Of all that is recorded one in so many is composed; all of it is where slow tests run."""
NEW = "what is new: python -m tests.support.golden"


@pytest.fixture(
    scope="module", params=[SHARE, pytest.param(1, marks=pytest.mark.slow)], ids=["a part", "all"]
)
def share(request):
    return request.param


@pytest.fixture(scope="module")
def current(share):
    return golden.collect(share)


def test_all_options_and_tables_are_recorded_and_no_others():
    known = golden.recorded()
    runs, asked = known.pop("runs").keys(), dict(golden.single_runs()).keys()
    assert runs <= asked
    assert {name for name in asked - runs if " " not in name} == set(), NEW
    assert known.keys() == {f"table={name}" for name in golden.tables()}, NEW


def test_identities_are_as_recorded(share, current):
    known, asked = golden.recorded(), dict(golden.single_runs(share))
    known["runs"] = {key: ids for key, ids in known["runs"].items() if key in asked}
    changed = {
        f"{group}: {key}": (known[group].get(key), ids.get(key))
        for group, ids in current.items()
        for key in known[group].keys() | ids.keys()
        if known[group].get(key) != ids.get(key)
    }
    assert changed == {}, NEW


def test_what_is_no_part_of_the_identity_may_be_missing_in_an_older_run():
    config = compose_config()
    full, kept = config.container(), config.identity()
    left_out = {key for key in full if key not in kept}
    left_out |= {
        f"{group}.{key}"
        for group in ("runtime", "data", "optim")
        for key in full[group]
        if key not in kept[group]
    }
    assert left_out - set(VOLATILE) == {"scale"}  # it acts through the keys that it caps
