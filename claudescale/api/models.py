"""Models that the user describes, and tables of all models in the catalog and the Models API."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, get_args

import polars as pl

from claudescale import loops
from claudescale.api import catalog
from claudescale.api.answers import dig
from claudescale.api.catalog import PARTS, WORDS
from claudescale.api.client import Wire, check_client, listed, unasked
from claudescale.api.prices import price
from claudescale.errors import PlanError
from claudescale.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anthropic import AsyncAnthropic


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is not in the catalog: one released yesterday, or a gateway's name for one.

    Pass it as ``model=``. Its id is sent unchanged and is part of every row's key. Without prices its cost
    is unknown, so a `budget` needs both.

    Spends: nothing.

    Parameters
    ----------
    id : str
        The id that the API, or the gateway, takes.
    like : str
        The catalog model from which everything else is copied: tokenizer, thinking, efforts, cache, and
        which of a tier's limits apply.
    input_dollars, output_dollars : float, optional
        Dollars per million tokens. The API's usual multiples apply: 1.25 and 2 times for cache writes, a
        tenth for cache reads, and half in batches.
    context_tokens, max_tokens : int, optional
        The longest request and the longest reply.

    Raises
    ------
    PlanError
        A value is not valid. The message says what to type.

    Notes
    -----
    Source of the multiples: Anthropic, *Pricing* (checked 2026-10-10).

    Examples
    --------
    >>> Model("claude-haiku-6", input_dollars=0.2, output_dollars=1.0).like
    'claude-haiku-5-5'
    """

    id: str
    _: KW_ONLY
    like: str = "claude-haiku-5-5"
    input_dollars: float | None = None
    output_dollars: float | None = None
    context_tokens: int | None = None
    max_tokens: int | None = None
    facts: catalog.ModelFacts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id or self.id != self.id.strip():
            raise PlanError(WORDS["given"]["id"].format(id=self.id))
        like = catalog.model(self.like)
        for name in ("input_dollars", "output_dollars", "context_tokens", "max_tokens"):
            unit = name.rpartition("_")[2]
            value = plain(getattr(self, name), whole=unit == "tokens")
            number = type(value) is int or (type(value) is float and unit == "dollars")
            if value is not None and not (number and 0 < value < math.inf):
                raise PlanError(WORDS["given"][unit].format(id=self.id, name=name, value=getattr(self, name)))
            object.__setattr__(self, name, value)
        unpriced = [name for name in ("input_dollars", "output_dollars") if getattr(self, name) is None]
        if len(unpriced) == 1:
            raise PlanError(WORDS["given"]["one_price"].format(id=self.id, name=unpriced[0]))
        unknown = ("deprecated_on", "retires_on", "retires_not_before", "successor", "prices_of")
        changes: dict[str, Any] = dict.fromkeys(unknown) | {
            "id": self.id,
            "snapshot": self.id,
            "lifecycle": "active",
            "context_tokens": self.context_tokens or like.context_tokens,
            "max_output_tokens": self.max_tokens or like.max_output_tokens,
            "verified_only": False,
            "given": True,
            "given_dollars": None if unpriced else (self.input_dollars, self.output_dollars),
            "source": f"given by you, like {like.id}",
            "checked": catalog.now().date(),
        }
        object.__setattr__(self, "facts", replace(like, **changes))


# ------------------------------------------------------------------------------------------------- frames

_TEXT, _COUNT, _DOLLARS, _DAY, _FLAG = pl.String(), pl.Int64(), pl.Float64(), pl.Date(), pl.Boolean()
_TEXTS = pl.List(pl.String())
MODELS = pl.Schema(
    dict.fromkeys(("model", "line", "lifecycle"), _TEXT)
    | dict.fromkeys((f"dollars_per_million_{part}_tokens" for part in ("input", "output")), _DOLLARS)
    | dict.fromkeys((f"batch_dollars_per_million_{part}_tokens" for part in ("input", "output")), _DOLLARS)
    | dict.fromkeys(("price_step_tokens", "context_tokens", "max_output_tokens"), _COUNT)
    | dict.fromkeys((f"dollars_per_million_{part}_tokens" for part in PARTS if "cache" in part), _DOLLARS)
    | {"cache_minimum_tokens": _COUNT, "characters_per_token": pl.Float64(), "rate_group": _TEXT}
    | {"thinks_by_default": _FLAG, "efforts": _TEXTS}
    | {"retires_on": _DAY, "retires_not_before": _DAY, "successor": _TEXT, "source": _TEXT, "checked": _DAY}
)
"""Columns of `models`."""
_CAPABILITIES = ("batch", "structured_outputs", "image_input", "pdf_input", "citations")
API_MODELS = pl.Schema(
    MODELS
    | {"api_lifecycle": _TEXT, "max_input_tokens": _COUNT, "max_tokens": _COUNT}
    | dict.fromkeys(_CAPABILITIES, _FLAG)
    | {"api_efforts": _TEXTS, "thinking_types": _TEXTS, "retires_at": pl.Datetime("us", "UTC")}
    | {"differs": _TEXTS}
)
"""Columns of `compared`: the catalog's, the Models API's, and the names of the catalog's columns in which the
two differ, or ``"model"`` where only one of them has the model."""
_OUR_NAMES = {
    "api_lifecycle": "lifecycle",
    "max_input_tokens": "context_tokens",
    "max_tokens": "max_output_tokens",
    "batch": "batch",
    "structured_outputs": "structured_outputs",
    "api_efforts": "efforts",
    "thinking_types": "thinking_types",
    "retires_at": "retires_on",
}
"""Columns from the Models API, and the catalog's names for the same facts."""


def models(client: AsyncAnthropic | None = None, *, at: datetime | None = None) -> pl.DataFrame:
    """Return one row per model that can be called (`MODELS`), the newest of each line first.

    With a client, the Models API is asked once, and its lifecycle, dates, lengths and capabilities are added
    to the catalog's (`API_MODELS`), with rows for retired models and models that only the API knows.
    `differs` names the columns in which the two disagree. A prompt longer than `price_step_tokens`, if that
    is set, makes the whole request more expensive. A price that genai-prices does not know is null.

    Spends: nothing (one free request with a client).

    Parameters
    ----------
    client : AsyncAnthropic, optional
        From `connect`. It works from a script and from a notebook, without ``await``.
    at : datetime, optional
        When the models are to be called; the default is now.

    Raises
    ------
    PlanError
        The Models API did not answer. The message says why.

    Examples
    --------
    >>> models().select("model", "line").head(1).row(0)
    ('claude-haiku-5-5', 'haiku')
    """
    moment = at or catalog.now()
    if client is not None:
        check_client(client)
        return compared(loops.wait(_asked(client)), moment)
    known = [facts for facts in catalog.MODELS.values() if catalog.lifecycle(facts, moment) != "retired"]
    return pl.DataFrame([_row(facts, moment) for facts in known], MODELS)


def _row(model: catalog.KnownModel, at: datetime) -> dict[str, Any]:
    """Return the catalog's facts about a model at a moment, by column."""
    row = asdict(model) | {"model": model.id, "lifecycle": catalog.lifecycle(model, at)}
    with suppress(PlanError):  # an unknown price is null in the table
        for mode in get_args(catalog.Mode):
            step, *longer = price(model.id, mode=mode, at=at).steps
            prefix = "batch_" if mode == "batch" else ""
            prices = {f"{prefix}dollars_per_million_{part}_tokens": getattr(step, part) for part in PARTS}
            row |= {name: round(dollars * 1e6, 9) for name, dollars in prices.items()}
            row["price_step_tokens"] = longer[0].above_tokens if longer else None
    return row


async def _asked(client: AsyncAnthropic) -> list[dict[str, Any]]:
    """Return the Models API's entries for all models, including retired ones."""
    async with Wire(client) as wire:
        stages = ["active", "deprecated", "retired"]
        answer = await wire.patiently("/v1/models", limit=1000, lifecycle=stages)
    if answer.status != HTTPStatus.OK:
        raise unasked(answer, "models")
    return listed(answer) or []


def compared(infos: Iterable[Mapping[str, Any]], at: datetime) -> pl.DataFrame:
    """Return the catalog's models with the Models API's entry for each, as `API_MODELS`."""
    by_id = {catalog.id_of(info["id"]): info for info in infos if isinstance(info.get("id"), str)}
    rows: list[dict[str, Any]] = []
    known: Any = (*catalog.MODELS.values(), *catalog.RETIRED.values())
    for facts in known:
        info, ours = by_id.pop(facts.id, None), _row(facts, at)
        theirs, differs = _columns(info or {}), ["model"]
        if info is not None:
            differs = [
                same for name, same in _OUR_NAMES.items() if _differ(ours.get(same), theirs[name], name)
            ]
        if info is not None or ours["lifecycle"] != "retired":
            rows.append(ours | theirs | {"differs": differs})
    for name, info in by_id.items():
        rows.append({"model": name, "line": dig(str, info, "line"), "differs": ["model"], **_columns(info)})
    return pl.DataFrame(rows, API_MODELS)


def _differ(ours: Any, theirs: Any, name: str) -> bool:
    """Whether the API contradicts the catalog in a column; a missing value does not."""
    if name == "retires_at":  # a missing date does: none is announced
        return bool(ours != (theirs and theirs.date()))
    if isinstance(theirs, list):
        return {*(ours or ())} != {*theirs}
    # The API has no word for "legacy".
    return theirs is not None and ours != theirs and (ours, theirs) != ("legacy", "active")


def _columns(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the API's facts about a model, by column; null where they are missing or unreadable."""

    def supported(*path: str) -> list[str] | None:
        values = dig(dict, info, "capabilities", *path)
        return None if values is None else [name for name in values if dig(bool, values, name, "supported")]

    retires_at = None
    with suppress(ValueError):
        retires_at = datetime.fromisoformat(dig(str, info, "retires_at") or "").astimezone(UTC)
    return {
        "api_lifecycle": dig(str, info, "lifecycle"),
        "max_input_tokens": dig(int, info, "max_input_tokens"),
        "max_tokens": dig(int, info, "max_tokens"),
        **{name: dig(bool, info, "capabilities", name, "supported") for name in _CAPABILITIES},
        "api_efforts": supported("effort"),
        "thinking_types": supported("thinking", "types"),
        "retires_at": retires_at,
    }
