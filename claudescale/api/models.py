"""Models as a user names and lists them: one that the catalog does not have, and what the API says of all."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from numbers import Real
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import clock, loops
from claudescale.api import catalog
from claudescale.api.answers import dig
from claudescale.api.client import Wire, check_client, unasked
from claudescale.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anthropic import AsyncAnthropic


_SAID = catalog.WORDS["given"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the catalog does not have: released yesterday, or a gateway's name for one.

    Pass one as ``model=``. Its id is sent as it is, and is part of every row's key. Without prices its
    dollars are unknown, so a `budget` needs both.

    Spends: nothing.

    Parameters
    ----------
    id : str
        As the API, or the gateway, takes it.
    like : str
        The model of the catalog that stands for all else: tokenizer, thinking, efforts, cache, and which of a
        tier's limits count.
    input_dollars, output_dollars : float, optional
        Dollars per million tokens. The cache and batches have the API's usual multiples of them: 1.25 and 2
        times for cache writes, a tenth for reads, half in batches.
    context_tokens, max_tokens : int, optional
        The longest request, and the longest reply.

    Raises
    ------
    PlanError
        Something of it cannot be, and what to type instead.

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
    facts: catalog.Model = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id or self.id != self.id.strip():
            raise PlanError(_SAID["id"].format(id=self.id))
        like = catalog.model(self.like)
        prices = {name: self._number(name) for name in ("input_dollars", "output_dollars")}
        unpriced = [name for name, value in prices.items() if value is None]
        if len(unpriced) == 1:
            raise PlanError(_SAID["one_price"].format(id=self.id, name=unpriced[0]))
        unknown: Any = ("deprecated_on", "retires_on", "retires_not_before", "successor", "prices_of")
        changes: dict[str, Any] = dict.fromkeys(unknown) | {
            "lifecycle": "active",
            "context_tokens": int(self._number("context_tokens") or like.context_tokens),
            "max_output_tokens": int(self._number("max_tokens") or like.max_output_tokens),
            "verified_only": False,
            "given": True,
            "given_dollars": None if unpriced else tuple(prices.values()),
            "source": f"given by you, like {like.id}",
            "checked": clock.now().date(),
        }
        object.__setattr__(self, "facts", replace(like, id=self.id, snapshot=self.id, **changes))

    def _number(self, name: str) -> float | None:
        value: Any = getattr(self, name)
        if value is None:
            return None
        real = isinstance(value, Real | Decimal) and not isinstance(value, bool) and math.isfinite(value)
        dollars = name.endswith("dollars")
        if real and value > 0 and (dollars or value == int(value)):
            return float(value)
        words = _SAID["dollars" if dollars else "tokens"]
        raise PlanError(words.format(id=self.id, name=name, value=value))


_TEXTS, _COUNT, _FLAG = pl.List(pl.String()), pl.Int64(), pl.Boolean()
_API: dict[str, tuple[str, pl.DataType, str]] = {
    "api_lifecycle": ("lifecycle", pl.String(), "lifecycle"),
    "max_input_tokens": ("max_input_tokens", _COUNT, "context_tokens"),
    "max_tokens": ("max_tokens", _COUNT, "max_output_tokens"),
    "batch": ("capabilities.batch.supported", _FLAG, "batch"),
    "structured_outputs": ("capabilities.structured_outputs.supported", _FLAG, "structured_outputs"),
    "image_input": ("capabilities.image_input.supported", _FLAG, ""),
    "pdf_input": ("capabilities.pdf_input.supported", _FLAG, ""),
    "citations": ("capabilities.citations.supported", _FLAG, ""),
    "api_efforts": ("capabilities.effort", _TEXTS, "efforts"),
    "thinking_types": ("capabilities.thinking.types", _TEXTS, "thinking_types"),
    "retires_at": ("retires_at", pl.Datetime("us", "UTC"), "retires_on"),
}
"""Columns of what the Models API says: where each stands, its type, and what the catalog calls the same."""
API_MODELS = pl.Schema(
    catalog.MODELS_SCHEMA | {name: kind for name, (_, kind, _) in _API.items()} | {"differs": _TEXTS}
)
"""Columns of `compared`: the catalog's, what the Models API says, and in which of the catalog's columns the
two differ; ``"model"`` where only one of them has it."""


def models(client: AsyncAnthropic | None = None, *, at: datetime | None = None) -> pl.DataFrame:
    """Return one row per model that can be called, newest of each line first, as `catalog.MODELS_SCHEMA`.

    With a client the Models API is asked, once, and its lifecycle, dates, lengths and capabilities stand
    beside the catalog's, as `API_MODELS`; retired models and those that only the API knows are there too.
    `differs` names the columns in which the two do not agree. Where `price_step_tokens` is set, a prompt
    longer than that costs more for the whole request; a price that genai-prices does not know is null.

    Spends: nothing (one free request with a client).

    Parameters
    ----------
    client : AsyncAnthropic, optional
        From `connect`. It works from a script and from a notebook, without ``await``.
    at : datetime, optional
        The moment the models are to be called; the default is now.

    Raises
    ------
    PlanError
        The Models API cannot be asked: what it says.

    Examples
    --------
    >>> models().select("model", "line").head(1).row(0)
    ('claude-haiku-5-5', 'haiku')
    """
    if client is None:
        return catalog.models(at=at)
    check_client(client)
    return compared(loops.wait(_listed(client)), at or clock.now())


async def _listed(client: AsyncAnthropic) -> list[dict[str, Any]]:
    """Return what the Models API says of every model, retired ones too."""
    async with Wire(client) as wire:
        stages = ["active", "deprecated", "retired"]
        infos, answer = await wire.listed("models.list", limit=1000, lifecycle=stages)
    if answer.status != HTTPStatus.OK:
        raise unasked(answer, "models")
    return infos


def compared(listed: Iterable[Mapping[str, Any]], at: datetime) -> pl.DataFrame:
    """Return the catalog's models beside what the Models API says of each, as `API_MODELS`."""
    infos = {info["id"]: info for info in listed if isinstance(info.get("id"), str)}
    rows: list[dict[str, Any]] = []
    known: Any = (*catalog.MODELS.values(), *catalog.RETIRED.values())
    for facts in known:
        dated = infos.pop(facts.snapshot, None)
        info = infos.pop(facts.id, dated)
        row = {name: value for name, value in catalog.models_row(facts, at).items() if name not in _API}
        if info is not None:
            api = _columns(info)
            rows.append(row | api | {"differs": _differences(catalog.models_row(facts, at), api)})
        elif row["lifecycle"] != "retired":
            rows.append(row | {"differs": ["model"]})
    for name, info in infos.items():
        api = _columns(info)
        rows.append({"model": name, "line": dig(str, info, "line"), "differs": ["model"], **api})
    return pl.DataFrame(rows, API_MODELS)


def _differences(row: Mapping[str, Any], api: Mapping[str, Any]) -> list[str]:
    """Return the catalog's columns in which the API says something else; where it says nothing, none does."""
    differ = []
    for name, (*_, same) in _API.items():
        ours, theirs = row.get(same), api[name]
        if name == "retires_at":  # that there is no day is said too
            theirs = theirs and theirs.date()
        elif theirs is None:
            continue
        if isinstance(theirs, list):
            ours, theirs = set(ours or ()), set(theirs)
        alike = ours == theirs or (ours, theirs) == ("legacy", "active")  # it has no word for "legacy"
        if same and not alike:
            differ.append(same)
    return differ


def _columns(info: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _column(info, path, kind) for name, (path, kind, _) in _API.items()}


def _column(info: Mapping[str, Any], path: str, kind: pl.DataType) -> Any:
    """Return what the API says of a model in one column; null where it says nothing that can be read."""
    if kind == _TEXTS:
        known = dig(dict, info, *path.split("."))
        return known and [name for name in known if dig(bool, known, name, "supported")]
    if isinstance(kind, pl.Datetime):
        with suppress(ValueError):
            moment = datetime.fromisoformat(dig(str, info, path) or "")
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        return None
    return dig(kind.to_python(), info, *path.split("."))
