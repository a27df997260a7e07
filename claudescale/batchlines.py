"""The result lines of a batch as attempts: any bytes in, a frame out.

A line is read by `_read`, one at a time, with the rules of `verdicts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.bills import dollars
from claudescale.ledgerfile import ATTEMPTS
from claudescale.verdicts import (
    USAGE,
    Verdict,
    read_object,
    stop_reason_of,
    text_of,
    usage_of,
    verdict_on_result,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from claudescale.bills import Price

_COLUMNS = ("key", "error", "message", "request_id", "stop_reason", "reply", *USAGE, "final")
_READ = pl.Schema({name: ATTEMPTS.get(name, pl.Boolean()) for name in _COLUMNS})


def attempts(
    block: bytes,
    *,
    nonce: str,
    batch_id: str,
    model: str,
    price: Price,
    simulated: bool,
    run: str,
    sent_at: float,
    seconds: float,
    trusted: bool,
) -> pl.DataFrame:
    """Return the attempts that the result lines of a batch tell of; never raises, whatever the bytes.

    Spends: nothing.

    Parameters
    ----------
    block : bytes
        Whole lines in any order; the last newline may be missing.
    nonce : str
        Only lines whose ``custom_id`` ends in ``-{nonce}`` are ours. What stands before it is the key.
    batch_id, model, simulated, run
        What all attempts have in common.
    price : Price
        Of the model in a batch.
    sent_at, seconds : float
        API unix seconds at which the batch was sent, and how long it took.
    trusted : bool
        Whether an error that sending again cannot mend ends its row. False while nothing has been
        answered: then it is hardly the rows.

    Returns
    -------
    pl.DataFrame
        `ATTEMPTS` and Boolean `final`, one row per line, in the order of the lines. A line that cannot
        be read, or is not ours, is left out.
    """
    read = _slowly(enumerate(block.split(b"\n")), nonce=nonce, trusted=trusted)
    paid = {name: pl.col(name) for name in USAGE if name != "thinking_tokens"}
    same = {"run": run, "mode": "batch", "batch_id": batch_id, "model": model, "seconds": seconds}
    moment = pl.lit(round(sent_at * 1e6), pl.Int64)
    return read.select(
        *_READ,
        dollars=dollars(price, **paid),
        sent_at=moment.cast(ATTEMPTS["sent_at"]),
        status=pl.lit(None, pl.Int64),
        simulated=pl.lit(simulated),
        **{name: pl.lit(value, ATTEMPTS[name]) for name, value in same.items()},
    ).select(*ATTEMPTS, "final")


def proves(block: bytes, nonce: str) -> bool | None:
    """Return whether the first readable line is of the batch with this nonce; None if none is readable.

    Spends: nothing.
    """
    for line in _lines(block):
        custom_id = read_object(line).get("custom_id")
        if isinstance(custom_id, str):
            return custom_id.endswith(f"-{nonce}")
    return None


def _lines(block: bytes) -> Iterator[bytes]:
    """Yield the lines one by one: who wants the first does not split all."""
    start = 0
    while (end := block.find(b"\n", start)) >= 0:
        yield block[start:end]
        start = end + 1
    yield block[start:]


def _slowly(lines: Iterator[tuple[int, bytes]], *, nonce: str, trusted: bool) -> pl.DataFrame:
    """Return `_READ` of the lines that are ours, and `at`: the number of each line."""
    found = ((at, *row) for at, line in lines if (row := _read(line, nonce, trusted=trusted)) is not None)
    return pl.DataFrame(list(found), schema={"at": pl.UInt32(), **_READ}, orient="row")


def _read(line: bytes, nonce: str, *, trusted: bool) -> tuple[object, ...] | None:
    """Return a row of `_READ`; None where the line is no result of ours."""
    body = read_object(line)
    custom_id = body.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id.endswith(f"-{nonce}"):
        return None
    result = body.get("result")
    result = result if isinstance(result, dict) else {}
    found = verdict_on_result(result)
    message = found.reply or {}
    texts = (
        custom_id[: -len(nonce) - 1],
        found.error,
        found.message,
        _request_id(result, found),
        stop_reason_of(message),
        text_of(message),
    )
    final = found.final and (found.outcome == "answered" or trusted)
    return *map(_storable, texts), *usage_of(message).values(), final


def _request_id(result: dict[str, Any], found: Verdict) -> str | None:
    error = result.get("error")
    name = error.get("request_id") if isinstance(error, dict) and found.outcome != "answered" else None
    return name if isinstance(name, str) else None


def _storable(text: str | None) -> str | None:
    """Return a text with half a surrogate pair as U+FFFD: neither a file nor a frame can hold it."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
