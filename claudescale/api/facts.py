"""The shape of a fact: what `catalog.toml` says of a model, a tier, a limit, and reading it.

Kept apart from `catalog`, which answers questions about the facts.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

Mode: TypeAlias = Literal["live", "batch"]
Lifecycle: TypeAlias = Literal["active", "legacy", "deprecated", "retired"]


USAGE = (
    "input_tokens",
    "cache_write_5m_input_tokens",
    "cache_write_1h_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "thinking_tokens",
)
"""What an answer's usage is counted as. All but the last are priced: thinking is output."""

ANSWERED = ("answering_model", "inference_geo", "speed", "web_search_requests")
"""What an answer says of itself besides, which decides its price."""


class Rates(NamedTuple):
    """What a tier allows one group of models in a minute."""

    requests_per_minute: int
    input_tokens_per_minute: int
    output_tokens_per_minute: int


_RETIRES = 9
"""The hour, in California, at which a model retires. Source: Anthropic, *Model deprecations* (2026-11-29)."""
_MARCH, _NOVEMBER = 3, 11


def retirement(day: date | None) -> datetime | None:
    """Return the moment a model retires on a day: 9 AM Pacific, in UTC. No table of time zones is needed."""
    if day is None:
        return None
    # Daylight saving time: from the second Sunday of March to the first of November.
    begins, ends = _sunday(day.year, _MARCH, 8), _sunday(day.year, _NOVEMBER, 1)
    return datetime.combine(day, time(_RETIRES + (7 if begins <= day < ends else 8)), UTC)


def _sunday(year: int, month: int, first: int) -> date:
    """Return the first Sunday of a month from a day on."""
    return date(year, month, first + 6 - date(year, month, first).weekday())


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is known about one model that can be called, or could be once.

    Attributes
    ----------
    id : str
        The name to send; aliases resolve to it.
    snapshot : str
        The dated id that `id` stands for; the same as `id` where there is none.
    lifecycle : str
        As of `checked`: "active", "legacy", "deprecated".
    retires_on : date or None
        The announced day on which requests begin to fail (see `retires_at`); None if none is announced.
    retires_not_before : date or None
        The day up to which Anthropic promised to keep it, where no retirement is announced.
    successor : str or None
        What to use instead, where there is something newer.
    verified_only : bool
        Only organizations that Anthropic has verified may call it.
    cache_minimum_tokens : int or None
        The shortest prefix that is cached; None is unknown.
    characters_per_token : float
        For estimates, by generation of the tokenizer.
    tokenizer : str
        "2024", or "2026" (Opus 4.7 and later: about 30% more tokens for the same text).
    rate_group : str
        Models of one group share one set of rate limits.
    thinks_by_default : bool
        It thinks unless told not to; thinking is billed as output.
    thinking_types : tuple of str
        What ``thinking.type`` may be.
    thinking_off : dict or None
        The ``thinking`` parameter that keeps thinking off in bulk rows. None: off already, or cannot
        be turned off.
    thinking_off_up_to_effort : str or None
        Above this effort `thinking_off` is refused; None is no such bound.
    efforts : tuple of str
        What ``output_config.effort`` may be; empty where the parameter is refused.
    default_effort : str or None
        The effort without the parameter.
    effort_for_bulk : str or None
        The effort that keeps thinking small where it cannot be turned off.
    prices_of : str or None
        The twin that costs the same, where genai-prices has only that one.
    given : bool
        The user described it, see `claudescale.api.ownmodels.Model`: no catalog and no price list has it.
    given_dollars : tuple of float or None
        What the user says that a million input and output tokens cost; None of one that is given is unknown.
    """

    id: str
    snapshot: str
    line: str
    lifecycle: Lifecycle
    deprecated_on: date | None = None
    retires_on: date | None = None
    retires_not_before: date | None = None
    successor: str | None = None
    verified_only: bool
    context_tokens: int
    max_output_tokens: int
    cache_minimum_tokens: int | None = None
    characters_per_token: float
    tokenizer: str
    rate_group: str
    thinks_by_default: bool
    thinking_types: tuple[str, ...]
    thinking_off: dict[str, str] | None = field(default=None, hash=False)
    thinking_off_up_to_effort: str | None = None
    efforts: tuple[str, ...]
    default_effort: str | None = None
    effort_for_bulk: str | None = None
    sampling_allowed: bool
    structured_outputs: bool
    batch: bool
    prices_of: str | None = None
    given: bool = False
    given_dollars: tuple[float, float] | None = None
    source: str
    checked: date

    @property
    def retires_at(self) -> datetime | None:
        """The moment from which requests fail, in UTC; None if none is announced."""
        return retirement(self.retires_on)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetiredModel:
    """A model that could be called once.

    Attributes
    ----------
    id, snapshot : str
        The short and the dated name.
    retires_on : date
        The day from which requests fail.
    successor : str
        The replacement that Anthropic recommends.
    """

    id: str
    snapshot: str
    line: str | None = None
    retires_on: date
    successor: str
    source: str
    checked: date

    @property
    def retires_at(self) -> datetime:
        """The moment from which requests fail, in UTC."""
        found = retirement(self.retires_on)
        assert found is not None
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """What an account of one usage tier may do. None is not published.

    Attributes
    ----------
    name : str
        As `tier` takes it.
    family : str
        "today", or "numbered" for the tiers that ended on the API on 2026-06-26.
    qualify : str
        How one gets there.
    limits : mapping of str to Rates
        By rate group (`Model.rate_group`). Empty where limits are not published.
    spend_dollars_per_month : float or None
        The most the account may spend in a calendar month.
    batch_queue_requests : int or None
        Requests of all batches together that may wait at one time.
    batch_requests_per_minute : int or None
        HTTP calls to all batch endpoints.
    count_tokens_per_minute : int or None
        HTTP calls to the token counter (calls, not tokens).
    """

    name: str
    family: Literal["today", "numbered"]
    qualify: str
    limits: Mapping[str, Rates] = field(hash=False)
    spend_dollars_per_month: float | None = None
    batch_queue_requests: int | None = None
    batch_requests_per_minute: int | None = None
    count_tokens_per_minute: int | None = None
    source: str
    checked: date


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFacts:
    """What the Messages API takes in one request."""

    max_bytes: int
    max_messages: int
    nonstreaming_max_tokens: int
    schema_optional_parameters: int
    schema_union_parameters: int
    schema_strict_tools: int
    source: str
    checked: date


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """What the Message Batches API takes in one batch, and how long it keeps it."""

    max_requests: int
    max_bytes: int
    expires_hours: int
    results_days: int
    custom_id_pattern: str
    refused_parameters: tuple[str, ...]
    cache_hit_shares: tuple[float, float]
    source: str
    checked: date


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeFacts:
    """What costs, or does not cost, besides the tokens at their list price.

    Attributes
    ----------
    us_factor : float
        What US geography multiplies the price of every token with.
    geographies : tuple of str
        What ``inference_geo`` may be, on models that are not in `no_inference_geo`.
    billed_refusals : tuple of str
        Categories of refusals that are billed although nothing was written.
    server_tool_turns : int
        Most turns of the model in one answer with server tools.
    no_forced_tool : tuple of str
        Models that cannot be made to call a tool.
    """

    us_factor: float
    geographies: tuple[str, ...]
    no_inference_geo: tuple[str, ...]
    billed_refusals: tuple[str, ...]
    server_tool_turns: int
    no_forced_tool: tuple[str, ...]
    source: str
    checked: date


_Row = TypeVar("_Row")


def _row(kind: type[_Row], row: Mapping[str, Any]) -> _Row:
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})


def _models_of(data: Mapping[str, Any]) -> dict[str, Model]:
    models = {}
    for row in data["model"]:
        tokenizer = data["tokenizer"][row["tokenizer"]]
        known = {"snapshot": row["id"], "characters_per_token": tokenizer["characters_per_token"]}
        models[row["id"]] = _row(Model, data["model_defaults"] | known | row)
    return models


def _tiers_of(data: Mapping[str, Any]) -> dict[str, Tier]:
    tiers = {}
    for row in data["tier"]:
        limits = {
            group: Rates(limit["requests"], limit["input_tokens"], limit["output_tokens"])
            for limit in row["limits"]
            for group in data["limit_classes"][limit["class"]]
        }
        tiers[row["name"]] = _row(Tier, row | {"limits": MappingProxyType(limits)})
    return tiers


def read_facts() -> tuple[
    Mapping[str, Model], Mapping[str, RetiredModel], Mapping[str, Tier], MessageFacts, BatchFacts, ChargeFacts
]:
    """Return the models, the retired models, the tiers, the limits and the charges of `catalog.toml`.

    Spends: nothing.
    """
    with Path(__file__).with_name("catalog.toml").open("rb") as file:
        data = tomllib.load(file)
    retired = {row["id"]: _row(RetiredModel, {"snapshot": row["id"]} | row) for row in data["retired"]}
    return (
        MappingProxyType(_models_of(data)),
        MappingProxyType(retired),
        MappingProxyType(_tiers_of(data)),
        _row(MessageFacts, data["message"]),
        _row(BatchFacts, data["batch"]),
        _row(ChargeFacts, data["charges"]),
    )
