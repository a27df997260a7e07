"""The constant part of a request: what every row's body shares, checked against what the model takes."""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

from claudescale.errors import PlanError
from claudescale.templates import check_unicode

if TYPE_CHECKING:
    from claudescale.catalog import Model
    from claudescale.replies import Returns

Cache: TypeAlias = bool | Literal["5m", "1h"]

_OWN_ARGUMENTS = {
    "model": "model=",
    "messages": "the prompt",
    "max_tokens": "max_tokens=",
    "system": "system=",
    "thinking": "thinking=",
    "cache_control": "cache=True, which marks the shared prefix and not the row",
}
_SAMPLING = ("temperature", "top_p", "top_k")


def plain(value: Any, *, whole: bool = False) -> Any:
    """Return a number of NumPy's, a Decimal or a Fraction as Python's own; anything else as it is.

    `whole` takes 5.0 as 5.
    """
    if type(value).__module__ == "numpy" and getattr(value, "size", 0) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        return value
    try:
        number = float(value)
        if isinstance(value, numbers.Integral) or (whole and number == int(number)):
            return int(cast("int", value))
    except (ValueError, OverflowError):  # no number, or none that can be held
        return value
    return number


class Constant(NamedTuple):
    """What every request of a prompt shares.

    Attributes
    ----------
    body : dict
        The request without its messages, in the order it is sent.
    shared_characters : int
        Characters the model reads in every request: system prompt, tools, schema.
    notes : tuple of str
        What is worth knowing and no error.
    """

    body: dict[str, Any]
    shared_characters: int
    notes: tuple[str, ...]


def constant(
    model: Model,
    *,
    max_tokens: int,
    system: str | None,
    returns: Returns | None,
    effort: str | None,
    thinking: Mapping[str, Any] | None,
    cache: Cache,
    params: Mapping[str, Any] | None,
) -> Constant:
    """Return the constant part of a request; the arguments are those of `compile_prompt`.

    Raises
    ------
    PlanError
        The API would refuse every row.
    """
    if params is not None and not isinstance(params, Mapping):
        msg = f"params={params!r}: it is a dict of the API's own fields, such as params={{'metadata': ...}}."
        raise PlanError(msg)
    extra = _checked_params(params or {})
    max_tokens = plain(max_tokens, whole=True)
    if isinstance(thinking, Mapping):
        thinking = {name: plain(value, whole=True) for name, value in thinking.items()}
    if type(max_tokens) is not int or not 1 <= max_tokens <= model.max_output_tokens:
        most = f"{model.max_output_tokens:,}"
        msg = f"max_tokens={max_tokens!r}: it is a whole number, and {model.id} writes 1 to {most} tokens."
        raise PlanError(msg)
    thought, output = _thinking(model, max_tokens, effort, thinking)
    output |= _output(returns, extra.pop("output_config", None))
    body: dict[str, Any] = {"model": model.id, "max_tokens": max_tokens}
    control = _cache_control(cache, system)
    if system is not None:
        _check_system(system)
        body["system"] = [{"type": "text", "text": system, **control}] if control else system
    body |= ({"thinking": dict(thought)} if thought else {}) | ({"output_config": output} if output else {})
    tools = as_json(extra["tools"]) if extra.get("tools") else ""
    prefix = len(system or "") + len(tools)
    shared = prefix + (len(as_json(returns.json_schema)) if returns else 0)
    return Constant(body | extra, shared, _cache_notes(model, prefix) if cache else ())


def as_json(value: object) -> str:
    """Return a value as compact JSON, always the same bytes for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


_LEAST_THINKING_TOKENS = 1_024
_DEARER = {"speed": "fast", "inference_geo": "us"}
"""Values at other prices than the list's. Source: Anthropic, *Pricing* (checked 2026-10-10)."""


def _checked_params(params: Mapping[str, Any]) -> dict[str, Any]:
    for name in params:
        if not isinstance(name, str):
            msg = f"params has {name!r}, which is no name: it is a dict of the API's own fields."
            raise PlanError(msg)
        if name in _OWN_ARGUMENTS:
            msg = f"params has {name!r}. Use {_OWN_ARGUMENTS[name]} instead."
            raise PlanError(msg)
        if name in _SAMPLING:
            msg = (
                f"params has {name!r}: the API (version 2026-10-21) takes no sampling parameters. "
                "Leave it out; for labels that do not vary use returns=pl.Enum([...])."
            )
            raise PlanError(msg)
        if name == "stream":
            msg = "params has 'stream': a run reads whole replies. Leave it out."
            raise PlanError(msg)
        if params[name] == _DEARER.get(name):
            msg = (
                f"params has {name}={params[name]!r}, which costs more and is not priced here: estimate, "
                "bill and budget would be too low. Leave it out."
            )
            raise PlanError(msg)
    try:
        check_unicode("params", as_json(dict(params)))
    except (TypeError, ValueError) as error:
        if isinstance(error, PlanError):
            raise
        msg = (
            f"params cannot be written as JSON: {error}. Use only dict, list, str, int, float, bool and None."
        )
        raise PlanError(msg) from error
    # Only the outermost names are sorted: the order inside tools and schemas may matter to the model.
    return dict(sorted(params.items()))


def _thinking(
    model: Model, max_tokens: int, effort: str | None, thinking: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """Return the ``thinking`` and the ``output_config`` to send."""
    if effort is None and thinking is None:
        return model.thinking_off, {"effort": model.effort_for_bulk} if model.effort_for_bulk else {}
    if effort is not None and effort not in model.efforts:
        known = f"It takes {', '.join(model.efforts)}." if model.efforts else "Leave effort= out."
        msg = f"{model.id} does not take effort={effort!r}. {known}"
        raise PlanError(msg)
    kind = thinking.get("type") if isinstance(thinking, Mapping) else thinking
    if thinking is not None and kind not in model.thinking_types:
        known = ", ".join(f"{{'type': {each!r}}}" for each in model.thinking_types)
        msg = f"{model.id} does not take thinking of the type {kind!r}. It takes {known}."
        raise PlanError(msg)
    budget = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
    if kind == "enabled" and (not isinstance(budget, int) or budget < _LEAST_THINKING_TOKENS):
        msg = (
            f"thinking of the type 'enabled' needs budget_tokens from {_LEAST_THINKING_TOKENS:,} to below "
            f"max_tokens: thinking={{'type': 'enabled', 'budget_tokens': {_LEAST_THINKING_TOKENS}}}."
        )
        raise PlanError(msg)
    bound = model.thinking_off_up_to_effort
    off = model.thinking_off is not None and kind == model.thinking_off["type"]
    if off and effort and bound and model.efforts.index(effort) > model.efforts.index(bound):
        msg = f"{model.id} cannot keep thinking off at effort={effort!r}. Use effort={bound!r} or less."
        raise PlanError(msg)
    budget = (thinking or {}).get("budget_tokens")
    if isinstance(budget, int) and budget >= max_tokens:
        msg = (
            f"thinking's budget_tokens={budget:,} must be below max_tokens={max_tokens:,}. Raise max_tokens=."
        )
        raise PlanError(msg)
    return thinking, {"effort": effort} if effort else {}


def _output(returns: Returns | None, given: Mapping[str, Any] | None) -> dict[str, Any]:
    given = given or {}
    if "effort" in given:
        msg = "params has an 'effort' in its 'output_config'. Use effort= instead."
        raise PlanError(msg)
    if returns is not None and "format" in given:
        msg = "returns= and params['output_config']['format'] both say what the reply looks like. Keep one."
        raise PlanError(msg)
    return dict(given) | ({"format": returns.output_format} if returns else {})


def _check_system(system: str) -> None:
    if not isinstance(system, str) or not system.strip():
        msg = (
            f"system= must be a text that says something, not {system!r:.40}. Leave it out if there is none."
        )
        raise PlanError(msg)
    check_unicode("system", system)


def _cache_control(cache: Cache, system: str | None) -> dict[str, Any]:
    if cache is False:
        return {}
    if cache not in (True, "5m", "1h"):
        msg = f"cache must be False, True, '5m' or '1h', not {cache!r}."
        raise PlanError(msg)
    if system is None:
        msg = (
            "cache= needs a prefix that all rows share. "
            "Move what is the same for every row out of the prompt and into system=."
        )
        raise PlanError(msg)
    return {"cache_control": {"type": "ephemeral"} | ({"ttl": "1h"} if cache == "1h" else {})}


def _cache_notes(model: Model, characters: int) -> tuple[str, ...]:
    minimum = model.cache_minimum_tokens
    tokens = round(characters / model.characters_per_token)
    if minimum is None or tokens >= minimum:
        return ()
    note = (
        f"The shared prefix is about {tokens:,} tokens (estimated from characters); {model.id} caches "
        f"from {minimum:,} on, so it will most likely not be cached."
    )
    return (note,)
