"""Awaited: a coroutine that says what to type where ``await`` was forgotten."""

from __future__ import annotations

import functools
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

P = ParamSpec("P")
T = TypeVar("T")


class Awaited(Coroutine[Any, Any, T]):
    """A coroutine that is awaited like any other; whatever else is asked of it says that it has to be.

    Parameters
    ----------
    coroutine : coroutine
        What it stands for.
    line : str
        What to type.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], line: str) -> None:
        self._coroutine = coroutine
        self._line = line

    def __await__(self) -> Generator[Any, None, T]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """Go on. Spends: what the coroutine does."""
        return self._coroutine.send(value)

    def throw(self, *raised: Any) -> Any:
        """Go on with an exception. Spends: what the coroutine does."""
        return self._coroutine.throw(*raised)

    def close(self) -> None:
        """Give it up. Spends: nothing."""
        self._coroutine.close()

    def __getattr__(self, name: str) -> Any:
        msg = f"Nothing was sent: await is missing. Type {self._line}; it has .{name}, if anything has."
        raise AttributeError(msg)

    def __repr__(self) -> str:
        return f"Nothing was sent: await is missing. Type {self._line}"


def awaited(
    line: str,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Return what makes an ``async def`` say, where it is not awaited, that `line` is what to type."""

    def wrap(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(function)
        def call(*positional: P.args, **named: P.kwargs) -> Awaited[T]:
            return Awaited(function(*positional, **named), line)

        return call

    return wrap
