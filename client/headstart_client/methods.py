"""The options of a method on the command line: the budget, and any other."""

from __future__ import annotations

import argparse
from typing import Any

from headstart_client.inputs import option_value, pair

_NAMED = ("steps", "episodes", "environment_steps", "seconds", "target_return")


def add_budget(parser: Any) -> None:
    """Add the options of methods."""
    parser.add_argument("--steps", type=int, help="of the inner loop")
    parser.add_argument("--episodes", type=int, help="for each step of the inner loop; else a budget")
    parser.add_argument("--environment-steps", type=int, metavar="N", help="budget of ppo, dqn or sac")
    parser.add_argument("--seconds", type=float, help="budget of ppo, dqn or sac")
    parser.add_argument("--target-return", type=float, metavar="RETURN", help="end where this is reached")
    parser.add_argument(
        "--option", action="append", type=pair, metavar="NAME=VALUE", help="any other option of the method"
    )


def budget_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given."""
    chosen = {name: getattr(args, name) for name in _NAMED if getattr(args, name) is not None}
    return chosen | {name: option_value(value) for name, value in args.option or ()}
