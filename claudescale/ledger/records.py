"""One call and what came of it: the record that ledgers, meters and bills share."""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

import polars as pl


class Attempt(NamedTuple):
    """One answer or failure of the API; `sent_at` in API unix seconds.

    `model` is the one that was asked. `answering_model`, `inference_geo`, `speed` and `web_search_requests`
    are what the answer says of itself, and what `dollars` comes from. `refusal_category` is why the model
    declined, where it says so.
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


_DTYPES: dict[Any, pl.DataType] = {str: pl.String(), int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean()}
_DTYPES |= {kind | None: dtype for kind, dtype in _DTYPES.items()}


def columns_of(record: type[tuple[Any, ...]]) -> pl.Schema:
    """Return the columns that the fields of a NamedTuple become."""
    return pl.Schema({name: _DTYPES[kind] for name, kind in get_type_hints(record).items()})


ATTEMPTS = pl.Schema({**columns_of(Attempt), "sent_at": pl.Datetime("us", "UTC")})
"""One row per answer or failure of the API: the fields of `Attempt`, `sent_at` as a UTC datetime."""
