"""Axis expressions: products and sums of dims, as the tables write them ("Vp, C", "N, (NH+2*KVH)*HS")."""

import ast
import operator
from functools import lru_cache
from math import prod

from ..errors import KernelArgError

_OPERATORS = {ast.Add: operator.add, ast.Mult: operator.mul, ast.Sub: operator.sub}


@lru_cache(maxsize=None)
def split(axes: str) -> tuple[str, ...]:
    """ "N, 3*C" -> ("N", "3*C"); "" -> ()."""
    return tuple(axis.strip() for axis in axes.split(",")) if axes.strip() else ()


@lru_cache(maxsize=None)
def _parse(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def size(expression: str, dims: dict[str, int]) -> int:
    """The value of one axis. Raises KernelArgError for an unknown dim and ValueError for anything but names, +, -, *."""
    if expression.isdecimal():
        return int(expression)
    return _value(_parse(expression), expression, dims)


def _value(node: ast.expr, expression: str, dims: dict[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in dims:
            raise KernelArgError(f"dim {node.id} of {expression!r} is not known; known: {', '.join(sorted(dims))}")
        return dims[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, expression, dims), _value(node.right, expression, dims))
    raise ValueError(f"axis expression {expression!r}: only names, numbers, +, - and * are allowed")


def shape(axes: str, dims: dict[str, int]) -> tuple[int, ...]:
    return tuple(size(axis, dims) for axis in split(axes))


def solve(what: str, wanted: dict[str, str], given: dict[str, tuple[int, ...]], dims: dict[str, int]) -> dict[str, int]:
    """The dims of one kernel call: bare axes ("N") are read off the given shapes, the rest comes from `dims`.

    wanted: axes by argument; given: shapes by argument. Returns all dims, the solved ones in front of `dims`.
    Raises KernelArgError that names `what`, the argument and both shapes when two shapes do not fit together."""
    solved: dict[str, int] = {}
    for name, axes in wanted.items():
        if len(split(axes)) != len(given[name]):
            raise KernelArgError(f"{what}: {name} is {given[name]}, expected ({axes})")
        for axis, length in zip(split(axes), given[name]):
            if axis.isidentifier():
                solved.setdefault(axis, length)
    known = {**dims, **solved}
    for name, axes in wanted.items():
        expected = shape(axes, known)
        if expected != tuple(given[name]):
            raise KernelArgError(f"{what}: {name} is {tuple(given[name])}, expected ({axes}) = {expected}")
    return known


def floats(axes: str, dims: dict[str, int]) -> int:
    return prod(shape(axes, dims))
