"""Seeded faults: a piece of a function's source is changed, to see that a test takes notice."""

import inspect
import sys
from contextlib import contextmanager


@contextmanager
def fault(function, old: str, new: str):
    """The function with a piece of its source changed, wherever it is referred to."""
    module = sys.modules[function.__module__]
    source, text = inspect.getsource(function), inspect.getsource(module)
    assert source.count(old) == 1, f"{function.__qualname__} has {old!r} {source.count(old)} times"
    space = dict(vars(module))
    exec(compile(text.replace(source, source.replace(old, new)), module.__file__, "exec"), space)
    parts, before = function.__qualname__.split("."), function.__code__
    found = space[parts[0]]
    for part in parts[1:]:
        found = vars(found)[part]
    function.__code__ = found.__code__
    try:
        yield
    finally:
        function.__code__ = before
