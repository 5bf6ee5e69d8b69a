"""The core's configs in the OpenAPI document: what its docstrings say of them, and an example of each learner."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
import textwrap
from typing import Any

from models.finetune import CONFIGS as METHODS
from models.learners import CONFIGS as LEARNERS

LEARNER_EXAMPLES: tuple[dict[str, Any], ...] = (
    {"name": "maml", "outer_step": "promp", "inner_kl_target": 0.01},
    {"name": "maml", "outer_step": "trpo", "kl_limit": 0.01},
    {"name": "e-maml", "exploration_coefficient": 1.0},
    {"name": "dice", "inner_steps": 2, "inner_learning_rate": [0.1, 0.05]},
    {"name": "reptile", "inner_steps": 3, "outer_learning_rate": 0.5},
    {"name": "anil", "inner_learning_rate": 0.5},
    {"name": "meta-sgd", "rates": "layer", "inner_steps": 2},
    {"name": "cavia", "inner_learning_rate": 1.0},
    {"name": "multitask", "outer_learning_rate": 0.003},
)
"""Learners to ask for, beside that of the first example of a run."""

_POLICIES = {"cavia": {"hidden": [64, 32], "context_size": 4}}
"""Policies of learners that do not work with every one."""


def document_configs(schema: dict[str, Any]) -> dict[str, Any]:
    """Complete an OpenAPI document with what the framework leaves out of configs, and with a run with each learner.

    It takes no field's docstring that a config inherits; and what a learner is and where it comes from is said by the
    docstring of its module.
    """
    components = schema["components"]["schemas"]
    for config in (*LEARNERS.values(), *METHODS.values()):
        for name, text in ({"name": "Which one it is."} | field_docstrings(config)).items():
            components[config.__name__]["properties"][name]["description"] = text
    for config in LEARNERS.values():
        components[config.__name__]["description"] = inspect.cleandoc(sys.modules[config.__module__].__doc__ or "")
    first = components["NewRun"]["examples"][0]
    components["NewRun"]["examples"] = [first] + [
        first | {"learner": learner, "policy": _POLICIES.get(learner["name"], first["policy"])}
        for learner in LEARNER_EXAMPLES
    ]
    return schema


def field_docstrings(config: type) -> dict[str, str]:
    """The text below each field of a dataclass, inherited fields included, its lines joined."""
    found: dict[str, str] = {}
    for parent in reversed(config.__mro__[:-1]):
        found |= _own_docstrings(parent)
    return found


@functools.cache
def _own_docstrings(config: type) -> dict[str, str]:
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in itertools.pairwise(definition.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
