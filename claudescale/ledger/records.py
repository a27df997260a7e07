"""The records of a ledger: calls (`Attempt`), Message Batches (`Batch`) and processes (`Presence`)."""

from __future__ import annotations

import math
import os
import sys
import time
import uuid
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence


class Attempt(NamedTuple):
    """One answer or failure of the API; `sent_at` is in API Unix seconds.

    `model` is the requested model. `answering_model`, `inference_geo`, `speed` and `web_search_requests` are
    reported by the answer and determine `dollars`. `refusal_category` is the reason why the model declined,
    if it gave one.
    """

    key: str
    run: str
    mode: str
    batch_id: str | None
    model: str
    sent_at: float
    seconds: float
    status: int | None
    error: str | None
    message: str | None
    request_id: str | None
    stop_reason: str | None
    reply: str | None
    input_tokens: int
    cache_write_5m_input_tokens: int
    cache_write_1h_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    thinking_tokens: int
    dollars: float
    simulated: bool
    answering_model: str | None = None
    inference_geo: str | None = None
    speed: str | None = None
    web_search_requests: int = 0
    refusal_category: str | None = None

    @property
    def uncached_tokens(self) -> int:
        """Input that counts against the limits, as `claudescale.api.prices.UNCACHED`."""
        return self.input_tokens + self.cache_write_5m_input_tokens + self.cache_write_1h_input_tokens

    @property
    def prompt_tokens(self) -> int:
        """All input, as `claudescale.api.prices.PROMPT`."""
        return self.uncached_tokens + self.cache_read_input_tokens


class Batch(NamedTuple):
    """One Message Batch, from the intent to send it to its end; times are in API Unix seconds."""

    nonce: str
    api: str
    model: str
    requests: int
    intended_at: float
    state: str = "intended"
    batch_id: str | None = None
    created_at: float | None = None
    expires_at: float | None = None
    ended_at: float | None = None
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0


class Presence(NamedTuple):
    """One process at one moment: where it runs, and its last heartbeat.

    A process is identified by its id and its start time, because ids are reused. If these cannot be seen (in
    another container, on another computer, on Windows), the age of the last heartbeat decides. Processes of
    one boot use its clock, which neither jumps nor counts sleep; others use the time of day.
    """

    boot: str  # one boot of one kernel
    space: str  # the namespace in which process ids are unique
    pid: int
    born: str | None
    beat_at: float  # seconds since 1970
    beat_uptime: float  # seconds of the boot's clock

    @classmethod
    def here(cls) -> Presence:
        """Return the presence of this process now."""
        boot, space = f"{uuid.getnode():x}", ""
        if sys.platform == "linux":
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            space = str(Path("/proc/self/ns/pid").readlink())
        return cls(boot, space, os.getpid(), _born(os.getpid()), time.time(), time.monotonic())

    def may_live(self, here: Presence) -> bool:
        """Whether the process may be alive; one that cannot be seen has ended after 30 s of silence."""
        if (self.boot, self.space) == (here.boot, here.space):
            born = _born(self.pid)
            if born is not None:
                return born == self.born
        if self.boot == here.boot:
            return abs(here.beat_uptime - self.beat_uptime) < VOID_SECONDS
        return abs(here.beat_at - self.beat_at) < VOID_SECONDS


def _born(pid: int) -> str | None:
    """Return the start time of a process on this computer; "" if it has ended, None if that is unknown."""
    if sys.platform == "win32":
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass  # it exists, and belongs to another user
    try:
        # The state and the numbers follow the name in brackets, which may hold anything. Source: proc(5).
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *numbers = facts.rpartition(")")[2].split()
    return "" if state in {"Z", "X"} else numbers[18]


OPEN = ("intended", "in_progress", "canceling", "ended")
"""States of a batch that may still answer the rows it holds. It ends as collected, absent or gone."""

VOID_SECONDS = 30.0
_SQL: dict[Any, str] = {str: "TEXT", int: "INTEGER", float: "REAL", bool: "INTEGER"}
_DTYPES: dict[Any, pl.DataType] = {str: pl.String(), int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean()}


def _kinds(record: type[tuple[Any, ...]]) -> dict[str, tuple[type, ...]]:
    """Return the type of each field, followed by NoneType if the field may be null."""
    return {name: getattr(kind, "__args__", (kind,)) for name, kind in get_type_hints(record).items()}


def columns_of(record: type[tuple[Any, ...]]) -> pl.Schema:
    """Return the Polars columns for the fields of a NamedTuple."""
    return pl.Schema({name: _DTYPES[kind] for name, (kind, *_) in _kinds(record).items()})


def columns_sql(record: type[tuple[Any, ...]]) -> str:
    """Return the SQLite columns for the fields of a NamedTuple."""
    return ", ".join(
        f"{name} {_SQL[kind]}{'' if null or name == 'dollars' else ' NOT NULL'}"  # null: an unknown price
        for name, (kind, *null) in _kinds(record).items()
    )


ATTEMPTS = pl.Schema({**columns_of(Attempt), "sent_at": pl.Datetime("us", "UTC")})
"""One row per answer or failure of the API: the fields of `Attempt`, `sent_at` as a UTC datetime."""

RECORDS = pl.Schema({**ATTEMPTS, "final": pl.Boolean()})
"""`ATTEMPTS`, and whether each ended its row: by a paid reply, or by an error that no retry can fix."""

_FIELDS = [*_kinds(Attempt).values(), (bool,)]  # of a row
_ACCEPTED: list[Any] = [(*kinds, int) if float in kinds else kinds for kinds in _FIELDS]
_texts = itemgetter(*(place for place, kinds in enumerate(_FIELDS) if str in kinds))
_numbers = itemgetter(*(place for place, kinds in enumerate(_FIELDS) if int in kinds))
_STORED = {**RECORDS, "sent_at": pl.Int64(), "simulated": pl.Int64(), "final": pl.Int64()}


def row(attempt: Attempt, run: str, *, final: bool) -> tuple[Any, ...]:
    """Return an attempt as a row of the file; raise TypeError if it cannot be stored."""
    values = (attempt.key, run, *attempt[2:], final)
    are_valid = _are_of_their_fields(*map(type, values)) and math.isfinite(attempt.seconds)
    if not are_valid or max(map(abs, filter(None, _numbers(values))), default=0) >= 1 << 63:
        msg = "this is no attempt: a value is not of its field's type"
        raise TypeError(msg)
    try:
        "".join(filter(None, _texts(values))).encode()
    except UnicodeEncodeError:
        return tuple(map(storable, values))
    return values


def storable(value: Any) -> Any:
    """Return a text with lone surrogates as U+FFFD, as neither a file nor a frame can hold them."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@cache
def _are_of_their_fields(*kinds: type) -> bool:
    """Whether values of these types may be stored in a row."""
    return all(map(issubclass, kinds, _ACCEPTED))


def stored(attempts: pl.DataFrame, run: str) -> pl.DataFrame:
    """Return a frame of `RECORDS` with the values that the file holds."""
    moment = pl.col("sent_at").cast(pl.Int64) / 1e6
    return attempts.select(*RECORDS).with_columns(moment, run=pl.lit(run))


def frame(table: Sequence[tuple[Any, ...]], names: Sequence[str]) -> pl.DataFrame:
    """Return rows of the file as these columns of `RECORDS`; `sent_at` is given in microseconds."""
    columns = zip(names, zip(*table, strict=True) if table else [()] * len(names), strict=True)
    made = pl.DataFrame([pl.Series(name, values, _STORED[name]) for name, values in columns])
    unknown = pl.col(["dollars"] if "dollars" in names else []).fill_null(math.nan)
    return made.cast({name: RECORDS[name] for name in names}).with_columns(unknown)
