import json

import pytest

from app.documentation import LEARNER_EXAMPLES
from app.main import create_app
from app.settings import Settings
from models.learners import CONFIGS, LEARNERS


@pytest.fixture(scope="module")
def app_without_a_database(tmp_path_factory):
    return create_app(Settings(data=tmp_path_factory.mktemp("documented")))


@pytest.fixture
def components(app_without_a_database):
    return app_without_a_database.openapi()["components"]["schemas"]


@pytest.mark.parametrize("name", LEARNERS)
def test_every_option_of_a_learner_is_described_and_so_is_the_learner_with_its_source(components, name):
    component = components[CONFIGS[name].__name__]
    assert "Source: " in component["description"]
    assert {option for option, schema in component["properties"].items() if not schema.get("description")} == set()


def test_a_learner_is_told_apart_by_its_name(components):
    learner = components["NewRun"]["properties"]["learner"]
    assert learner["discriminator"]["propertyName"] == "name"
    assert set(learner["discriminator"]["mapping"]) == set(LEARNERS)


def test_describing_the_service_twice_gives_the_same_document(app_without_a_database):
    first = json.dumps(app_without_a_database.openapi())
    assert json.dumps(app_without_a_database.openapi()) == first


@pytest.mark.databases("sqlite")
def test_every_example_of_a_run_is_accepted_and_every_learner_has_one(client, components):
    assert {example["name"] for example in LEARNER_EXAMPLES} == set(LEARNERS)
    examples = components["NewRun"]["examples"]
    assert [example["learner"] for example in examples[1:]] == list(LEARNER_EXAMPLES)
    for example in examples:
        answer = client.post("/v1/runs", json=example)
        assert answer.status_code == 202, answer.text
