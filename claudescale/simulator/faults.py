"""Simulated faults: their kinds, how often and when they strike, all decided by the seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Any

from claudescale.errors import nearest
from claudescale.simulator.wire import TABLES, Problem

ACCOUNT: dict[str, str] = TABLES["account"]
_KINDS = TABLES["faults"]
ROW: dict[str, int] = _KINDS["of_a_row"]
NAMES: dict[str, str] = _KINDS["names"]
RAMP_SECONDS = 5
ROWS = (*ROW, "batch_expired", *ACCOUNT)
BEFORE = (*TABLES["errors"], *ACCOUNT, *_KINDS["before"])
AFTER, IN_REPLY, LEVELS = (tuple(_KINDS[when]) for when in ("after", "in_reply", "levels"))
CREATE_BEFORE, CREATE_AFTER = (*_KINDS["create_before"], *ACCOUNT), tuple(_KINDS["create_after"])
BATCH = (*CREATE_BEFORE, *CREATE_AFTER, *_KINDS["of_a_batch"], *ROW)
KINDS = tuple(dict.fromkeys((*BEFORE, *AFTER, *IN_REPLY, *BATCH, *LEVELS)))


def draws(key: bytes, purpose: str = "") -> Random:
    """Return a random generator seeded by `key` and `purpose`."""
    if purpose:
        key = blake2b(purpose.encode(), digest_size=8, key=key[:64]).digest()
    return Random(int.from_bytes(key[:8], "big"))


def trouble(kind: str) -> Problem:
    """Return the error that a fault causes: a problem of the account, or the error of a status."""
    if kind in ACCOUNT:
        return Problem(400, ACCOUNT[kind], kind, "" if kind == "organization_disabled" else kind)
    if kind == "429":
        return Problem(429, kind="ramp_limit_exceeded", code="ramp_limit_exceeded", retry_after=RAMP_SECONDS)
    return Problem(int(kind) if kind.isdecimal() else ROW.get(kind, 500))


@dataclass(frozen=True, slots=True)
class Fault:
    """How often, when and at which tries one kind of fault strikes.

    Attributes
    ----------
    probability : float
        Probability that the fault strikes a call.
    starts, ends : float
        The fault strikes only between these, in API seconds since the simulator started.
    tries : collection of int, optional
        The fault strikes only at these tries, counted from 1: ``Fault(tries=[1])`` strikes only once.
        `Faults` explains what counts as a try.
    """

    probability: float = 1.0
    starts: float = 0.0
    ends: float = math.inf
    tries: Collection[int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.probability, int | float) or not 0 <= self.probability <= 1:
            msg = f"a fault's probability is from 0 to 1, not {self.probability!r}"
            raise ValueError(msg)

    def covers(self, attempt: int, elapsed: float) -> bool:
        """Return whether the fault may strike at this try and moment."""
        return self.starts <= elapsed < self.ends and (self.tries is None or attempt in self.tries)


class Faults:
    """The faults of one simulator.

    Parameters
    ----------
    given : mapping
        Maps a kind to a probability, to (probability, starts, ends) with API seconds since the simulator
        started, or to a `Fault`. Kinds are an HTTP status (400, 401, 402, 403, 404, 408, 409, 413, 429 for
        the ramp limit, 500, 503, 504, 529), three of which have a name: ``overloaded`` (529),
        ``rate_limit`` (429), ``server_error`` (500); ``drop`` (closes the connection before anything is
        done), ``drop_after`` (closes it once the reply is complete and billed), ``hang`` or ``timeout``
        (never answers), ``html_body`` (a proxy's 502 page), ``truncated_body``, ``not_json``,
        ``empty_content``, ``thinking_only``, ``refusal`` (before any output: billed only in some
        categories, which the seed chooses), ``refusal_midway`` (billed), ``cut`` (as if ``max_tokens``
        were reached). Problems of the account strike calls, the creation of batches and rows alike:
        ``organization_on_hold``, ``workspace_human_review_disabled``, ``cmek_key_disabled``,
        ``cmek_key_network_blocked``, ``organization_disabled`` (without a code).
        Calls to the batch endpoints are otherwise struck only by: ``create_dropped`` (the body is read,
        the connection closes, no batch exists), ``create_failed`` (500, no batch), ``create_lost`` (the
        batch exists, but the connection closes without an answer), ``create_hang`` (the batch exists, but
        no answer ever comes), ``create_failed_after`` (the batch exists, but the answer is a 500),
        ``poll_failed`` (500 to a retrieve or a list), ``results_cut`` (the results break off halfway),
        ``batch_stuck`` (no row is done within the batch's 24 hours). The rows of a batch also have
        ``batch_errored`` (api_error), ``batch_overloaded``, ``batch_invalid`` and ``batch_expired``.
        Three kinds take a level instead: ``spend_cap``, ``workspace_spend`` (dollars after which every
        call is refused) and ``overload_above`` (529 while more calls than this are in flight).
    seed : int
        Decides which calls are struck. The same call is struck at the same try, regardless of other
        calls. Faults in the reply (``refusal``, ``cut``, ...) are the same at every try.

    Notes
    -----
    Tries are counted from 1. A message and a batch's row count the tries of the same request, live and
    in batches together. A create, a retrieve and a list count those of the whole simulator. Results count
    the downloads of one batch. So ``{"create_lost": Fault(tries=[1])}`` loses the first create and lets
    the second through, and ``{"batch_overloaded": Fault(tries=[1, 2])}`` lets each row through in its
    third batch.
    """

    def __init__(self, given: Mapping[Any, Any] | None, seed: int = 0) -> None:
        self.seed = seed
        self.levels: dict[str, float] = {}
        self._faults: dict[str, Fault] = {}
        self._tries: Counter[bytes] = Counter()
        if not isinstance(given, Mapping | None):
            msg = f"faults say what goes wrong and how often, such as faults={{529: 0.05}}, not {given!r}"
            raise TypeError(msg)
        for key, value in (given or {}).items():
            kind = NAMES.get(str(key), str(key))
            if kind not in KINDS:
                known = (*NAMES, *KINDS)
                msg = f"there is no fault {kind!r}.{nearest(kind, known)} Faults: {', '.join(known)}"
                raise ValueError(msg)
            if kind in LEVELS:
                self.levels[kind] = float(value)
            else:
                parts = value if isinstance(value, tuple | list) else (value,)
                self._faults[kind] = value if isinstance(value, Fault) else Fault(*parts)

    def attempt(self, key: bytes) -> int:
        """Count one more try of the request `key`, and return its number."""
        if self._faults:
            self._tries[key] += 1
        return self._tries[key]

    def strikes(self, kinds: tuple[str, ...], key: bytes, attempt: int, elapsed: float) -> str | None:
        """Return the first of `kinds` that strikes this try `elapsed` API seconds after the start, if any."""
        for kind in kinds:
            fault = self._faults.get(kind)
            if fault is not None and fault.covers(attempt, elapsed):
                drawn = draws(key, f"{self.seed}:{kind}:0:{attempt}").random()
                if drawn < fault.probability:
                    return kind
        return None
