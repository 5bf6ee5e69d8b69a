"""Reward functions that are written as one line of arithmetic.

    1 - abs(next_observation[2]) - 0.1 * (action == 0)

An expression is data from a stranger: it is read by Python's parser, checked node by node against what is
listed here, and turned into closures over torch batches. Nothing of it is ever run as Python.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Final, NoReturn, final

import torch
from torch import Tensor

from models.environments.base import shown
from models.types import InvalidValue

POINTER: Final = "/reward/expression"
MAX_LENGTH: Final = 1000
"""Most characters in an expression."""
MAX_DEPTH: Final = 100
"""Most levels of one operation inside another; a sum of n terms has n - 1."""
MAX_NODES: Final = 1000
"""Most nodes in the parsed expression."""
MAX_CONSTANT: Final = 1e9
"""Largest magnitude of a number that is written out."""

# An operand on which Python's tokenizer would warn or guess ("1if", "0x10", "2j") is not a token here.
_TOKEN = re.compile(
    r"(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.])|[A-Za-z_][A-Za-z_0-9]*"
    r"|\*\*|[<>=!]=|[-+*/<>()\[\],])[ \t]*",
    re.ASCII,
)
_OPERATORS: dict[type[ast.operator], Callable[..., Tensor]] = {
    ast.Add: torch.add,
    ast.Sub: torch.sub,
    ast.Mult: torch.mul,
    ast.Div: torch.true_divide,
    ast.Pow: torch.pow,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Tensor, Tensor], Tensor]] = {
    ast.Lt: torch.lt,
    ast.LtE: torch.le,
    ast.Gt: torch.gt,
    ast.GtE: torch.ge,
    ast.Eq: torch.eq,
    ast.NotEq: torch.ne,
}


def _minimum(*values: Tensor) -> Tensor:
    return reduce(torch.minimum, values)


def _maximum(*values: Tensor) -> Tensor:
    return reduce(torch.maximum, values)


def _clip(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(value, low), high)


_FUNCTIONS: dict[str, tuple[Callable[..., Tensor], int, int | None]] = {
    "abs": (torch.abs, 1, 1),
    "exp": (torch.exp, 1, 1),
    "log": (torch.log, 1, 1),
    "sqrt": (torch.sqrt, 1, 1),
    "sin": (torch.sin, 1, 1),
    "cos": (torch.cos, 1, 1),
    "tanh": (torch.tanh, 1, 1),
    "min": (_minimum, 2, None),
    "max": (_maximum, 2, None),
    "clip": (_clip, 3, 3),
    "where": (torch.where, 3, 3),
}
_ALLOWED: Final = (
    "allowed are observation[i], next_observation[i], action (action[i] where it is a vector), reward, "
    "terminated, numbers, + - * / **, comparisons, and, or, not, and the functions " + ", ".join(_FUNCTIONS)
)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What an expression is evaluated on."""

    observation: Tensor
    action: Tensor
    next_observation: Tensor
    reward: Tensor
    terminated: Tensor
    constants: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class _Term:
    """A compiled part of an expression: its values over a batch, bool or numbers."""

    evaluate: Callable[[_Batch], Tensor]
    is_bool: bool = False
    is_constant: bool = False

    def as_number(self) -> _Term:
        evaluate = self.evaluate
        if not self.is_bool:
            return self
        return _Term(lambda batch: evaluate(batch).to(batch.reward.dtype))

    def as_bool(self) -> _Term:
        evaluate = self.evaluate
        if self.is_bool:
            return self
        return _Term(lambda batch: evaluate(batch) != 0, is_bool=True, is_constant=self.is_constant)


@final
class RewardFunction:
    """A compiled expression; call it on batches of transitions.

    Attributes:
        expression: Its text, without blanks around it.
    """

    def __init__(self, expression: str, term: _Term, constants: Sequence[float]) -> None:
        self.expression = expression
        self._evaluate = term.evaluate
        self._constants = tuple(constants)
        self._tensors: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def __call__(
        self,
        observation: Tensor,
        action: Tensor,
        next_observation: Tensor,
        reward: Tensor,
        terminated: Tensor,
    ) -> Tensor:
        """The reward of each transition; what is true counts 1, what is false 0.

        Both sides of ``where``, ``and`` and ``or`` are worked out everywhere. NaN and infinity are
        returned as they come, for the caller to find.

        Args:
            observation: [..., O], before the action.
            action: [...] int64 where actions are discrete, else [..., A].
            next_observation: [..., O], after the action.
            reward: [...], the environment's own.
            terminated: [...] bool, whether the next state is terminal.

        Returns:
            [...], with the shape and dtype of ``reward``.
        """
        kind = (reward.dtype, reward.device)
        constants = self._tensors.get(kind)
        if constants is None:
            constants = self._tensors[kind] = tuple(reward.new_tensor(value) for value in self._constants)
        value = self._evaluate(_Batch(observation, action, next_observation, reward, terminated, constants))
        return value.to(reward.dtype).expand(reward.shape)


@final
class _Compiler:
    """Walks one parsed expression; every refusal says where and what is allowed."""

    def __init__(self, observation_size: int, action_size: int | None) -> None:
        self._sizes = {"observation": observation_size, "next_observation": observation_size}
        if action_size is not None:
            self._sizes["action"] = action_size
        self._nodes = 0
        self.constants: list[float] = []
        # The same numbers as tensors, on which constant parts are worked out while compiling.
        self._constant_tensors: list[Tensor] = []

    def compile(self, node: ast.expr, depth: int = 1) -> _Term:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            _refuse(node.col_offset, f"more than {MAX_DEPTH} levels or {MAX_NODES} parts")
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                if abs(value) > MAX_CONSTANT:
                    _refuse(node.col_offset, f"a number may be {MAX_CONSTANT:g} at most")
                return self._constant(float(value))
            case ast.Name(id=name):
                return self._variable(node, name)
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                return self._element(node, name, index)
            case ast.UnaryOp(op=sign, operand=operand):
                return self._unary(node, sign, self.compile(operand, depth + 1))
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
                operands = [self.compile(side, depth + 1).as_number() for side in (left, right)]
                return self._apply(node, _OPERATORS[type(sign)], operands)
            case ast.BoolOp(op=word, values=values):
                operands = [self.compile(value, depth + 1).as_bool() for value in values]
                join = torch.logical_and if isinstance(word, ast.And) else torch.logical_or
                return self._apply(node, lambda *sides: reduce(join, sides), operands, is_bool=True)
            case ast.Compare(left=left, ops=signs, comparators=rest):
                operands = [self.compile(side, depth + 1).as_number() for side in (left, *rest)]
                return self._apply(node, _chain(node, signs), operands, is_bool=True)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(node, name, [self.compile(argument, depth + 1) for argument in arguments])
        _refuse(node.col_offset, f"this is not allowed; {_ALLOWED}")

    def _constant(self, value: float) -> _Term:
        index = len(self.constants)
        self.constants.append(value)
        self._constant_tensors.append(torch.tensor(value, dtype=torch.float64))
        return _Term(lambda batch: batch.constants[index], is_constant=True)

    def _variable(self, node: ast.expr, name: str) -> _Term:
        if name in self._sizes:
            size = self._sizes[name]
            _refuse(node.col_offset, f"{name} is a vector: write {name}[0] to {name}[{size - 1}]")
        match name:
            case "reward":
                return _Term(lambda batch: batch.reward)
            case "action":
                return _Term(lambda batch: batch.action.to(batch.reward.dtype))
            case "terminated":
                return _Term(lambda batch: batch.terminated, is_bool=True)
        if name in _FUNCTIONS:
            _refuse(node.col_offset, f"{name} is a function: write {name}(...)")
        _refuse(node.col_offset, f"unknown name {shown(name)}; {_ALLOWED}")

    def _element(self, node: ast.expr, name: str, index: ast.expr) -> _Term:
        if name not in self._sizes:
            _refuse(node.col_offset, f"{shown(name)} is not a vector; {_ALLOWED}")
        size = self._sizes[name]
        match index:
            case ast.Constant(value=int() as i) if not isinstance(i, bool) and 0 <= i < size:
                vector = operator.attrgetter(name)
                return _Term(lambda batch: vector(batch).select(-1, i))
        _refuse(index.col_offset, f"the index of {name} must be a whole number from 0 to {size - 1}")

    def _unary(self, node: ast.expr, sign: ast.unaryop, operand: _Term) -> _Term:
        match sign:
            case ast.USub():
                return self._apply(node, torch.neg, [operand.as_number()])
            case ast.UAdd():
                return operand.as_number()
            case ast.Not():
                return self._apply(node, torch.logical_not, [operand.as_bool()], is_bool=True)
        _refuse(node.col_offset, f"this operator is not allowed; {_ALLOWED}")

    def _call(self, node: ast.expr, name: str, arguments: list[_Term]) -> _Term:
        if name not in _FUNCTIONS:
            _refuse(node.col_offset, f"unknown function {shown(name)}; {_ALLOWED}")
        function, fewest, most = _FUNCTIONS[name]
        if len(arguments) < fewest or (most is not None and len(arguments) > most):
            count = f"{fewest}" if most == fewest else f"{fewest} or more"
            _refuse(node.col_offset, f"{name} takes {count} arguments, not {len(arguments)}")
        terms = [argument.as_number() for argument in arguments]
        if name == "where":
            terms[0] = arguments[0].as_bool()
        return self._apply(node, function, terms)

    def _apply(
        self, node: ast.expr, function: Callable[..., Tensor], terms: list[_Term], *, is_bool: bool = False
    ) -> _Term:
        """A function of terms; of constants alone, its value."""
        evaluators = [term.evaluate for term in terms]

        def evaluate(batch: _Batch) -> Tensor:
            return function(*[evaluator(batch) for evaluator in evaluators])

        if not all(term.is_constant for term in terms):
            return _Term(evaluate, is_bool)
        nothing = torch.zeros((), dtype=torch.float64)
        value = float(evaluate(_Batch(nothing, nothing, nothing, nothing, nothing, self._constant_tensors)))
        if not math.isfinite(value):
            _refuse(node.col_offset, f"this is always {value}, which is no reward")
        return self._constant(value)


def _chain(node: ast.expr, signs: Sequence[ast.cmpop]) -> Callable[..., Tensor]:
    """The comparison a < b <= c of Python: each with the next, and all of them true."""
    comparisons = [_COMPARISONS.get(type(sign)) for sign in signs]
    if None in comparisons:
        _refuse(node.col_offset, f"this comparison is not allowed; {_ALLOWED}")

    def compare(*values: Tensor) -> Tensor:
        sides = zip(comparisons, values, values[1:], strict=False)
        return reduce(torch.logical_and, [holds(a, b) for holds, a, b in sides if holds is not None])

    return compare


def _refuse(offset: int, why: str) -> NoReturn:
    raise InvalidValue(POINTER, f"at column {offset + 1}: {why}")


def _parse(expression: str) -> ast.expr:
    """Python's parse of a short text, made of known tokens only, so that parsing it is harmless."""
    at = 0
    while at < len(expression):
        token = _TOKEN.match(expression, at)
        if token is None:
            _refuse(at, f"{shown(expression[at])} is not allowed here; {_ALLOWED}")
        at = token.end()
    try:
        return ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise InvalidValue(POINTER, f"at column {error.offset or 1}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError):
        raise InvalidValue(POINTER, f"nested too deeply; {MAX_DEPTH} levels are allowed") from None


@lru_cache(maxsize=256)
def _compile(expression: str, observation_size: int, action_size: int | None) -> RewardFunction:
    compiler = _Compiler(observation_size, action_size)
    term = compiler.compile(_parse(expression)).as_number()
    return RewardFunction(expression, term, compiler.constants)


def compile_reward(expression: str, observation_size: int, action_size: int | None) -> RewardFunction:
    """The reward function that an expression describes.

    Names are ``observation[i]`` and ``next_observation[i]``, before and after the action; ``action``, an
    index where actions are discrete, else ``action[i]``; ``reward``, the environment's own;
    ``terminated``. Arithmetic is that of torch in the batch's dtype: a division by zero is infinite, the
    logarithm of a negative number is NaN. A part without any of those names is worked out here, in
    float64, and must be finite.

    Args:
        expression: At most :data:`MAX_LENGTH` characters.
        observation_size: ``O``.
        action_size: ``A``, or ``None`` where actions are discrete.

    Raises:
        InvalidValue: If it is anything else than the arithmetic described here; says where and what is
        allowed.
    """
    if not isinstance(expression, str):
        raise InvalidValue(POINTER, f"must be a text, not {shown(expression)}")
    if len(expression) > MAX_LENGTH:
        raise InvalidValue(POINTER, f"{len(expression)} characters; {MAX_LENGTH} are allowed")
    if not expression.strip():
        raise InvalidValue(POINTER, f"the expression is empty; {_ALLOWED}")
    return _compile(expression.strip(), observation_size, action_size)
