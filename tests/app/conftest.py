"""What tests of work stand on; ``evaluating`` and ``acting`` hold what they ask for."""

import contextlib

import pytest
from evaluating import FAR, NEAR, publish

from app.auth import OPERATOR
from app.store import ArtefactStore
from app.tasks.service import create_family
from app.worker import Worker


@pytest.fixture
def store(settings):
    return ArtefactStore(settings.artefacts)


@pytest.fixture
def idle(settings):
    """A worker that does one adaptation, or one step of it, when it is told to."""
    with contextlib.closing(Worker(settings, "adaptations")) as worker:
        yield worker


@pytest.fixture
def evaluator(settings):
    """A worker that does one evaluation when it is told to."""
    with contextlib.closing(Worker(settings, "evaluations")) as worker:
        yield worker


@pytest.fixture
def good_and_bad(database, store):
    """Two families, a version that goes towards all goals, one that goes away from them."""
    with database.transaction() as session:
        for family in (NEAR, FAR):
            create_family(session, OPERATOR, family)
    publish(database, store, "good", 0.5)
    publish(database, store, "bad", -0.5)
