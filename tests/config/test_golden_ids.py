"""No run that is on a disk may be lost: what is asked for keeps its identity."""

from __future__ import annotations

import pytest

from ablation.runs.directory import VOLATILE
from tests.support import golden
from tests.support.configs import compose_config

SHARE = 8
"""Of the methods with a component, one in so many is composed; all are where slow tests run."""


@pytest.fixture(
    scope="module", params=[SHARE, pytest.param(1, marks=pytest.mark.slow)], ids=["a part", "all"]
)
def share(request):
    return request.param


@pytest.fixture(scope="module")
def current(share):
    return golden.collect(share)


def known_of(share):
    """What is recorded of what ``collect(share)`` composes."""
    known = golden.recorded()
    asked = dict(golden.single_runs(share))
    return known | {"runs": {key: ids for key, ids in known["runs"].items() if key in asked}}


def test_what_is_recorded_can_still_be_asked_for():
    assert golden.recorded()["runs"].keys() <= dict(golden.single_runs()).keys()


@pytest.mark.parametrize("group", list(golden.recorded()))
def test_identities_are_as_recorded(share, current, group):
    known = known_of(share)[group]
    changed = {key: (ids, current[group].get(key)) for key, ids in known.items()}
    assert {key: pair for key, pair in changed.items() if pair[0] != pair[1]} == {}


def test_everything_that_can_be_asked_for_is_recorded(current):
    known = golden.recorded()
    new = [
        f"{group}: {key}"
        for group, found in current.items()
        for key in found
        if key not in known.get(group, {})
    ]
    assert new == [], "run python -m tests.support.golden"


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
