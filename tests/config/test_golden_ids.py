"""No run that is on a disk may be lost: what is asked for keeps its identity."""

from __future__ import annotations

import pytest

from tests.support import golden


@pytest.fixture(scope="module")
def current():
    return golden.collect()


@pytest.mark.parametrize("group", list(golden.recorded()))
def test_identities_are_as_recorded(current, group):
    known = golden.recorded()[group]
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
