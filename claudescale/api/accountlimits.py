"""What the rate-limit API tells of an account, read from its answers, whatever they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from claudescale.api import catalog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_OF_MODELS = {
    "requests_per_minute": "requests_per_minute",
    "input_tokens_per_minute": "input_tokens_per_minute",
    "input_tokens_per_minute_cache_aware": "input_tokens_per_minute",
    "output_tokens_per_minute": "output_tokens_per_minute",
}
_OF_ENDPOINTS = {
    "batch": {
        "enqueued_batch_requests": "batch_queue_requests",
        "requests_per_minute": "batch_requests_per_minute",
    },
    "token_count": {"requests_per_minute": "count_tokens_per_minute"},
}


def account_limits(items: Iterable[Any], model: str | None = None) -> dict[str, float]:
    """Return the fields of `claudescale.Limits` that the entries of the rate-limit API tell.

    Of several values for one limit the smallest counts: it is the one that is met first. What is damaged,
    or a limit of nothing, is not told.

    Parameters
    ----------
    items : iterable
        Entries as JSON objects.
    model : str, optional
        Whose limits; without it the smallest of any model's.

    Notes
    -----
    Source: anthropic 2.12.0 ``types/organization/organization_rate_limit*.py`` (checked 2026-11-23), which
    nest the type of a group; Anthropic, *Rate Limits API* (checked 2026-08-13) shows it flat.
    """
    found: dict[str, float] = {}
    for item in items:
        entry = item if isinstance(item, dict) else {}
        for name, value in _told(entry, model).items():
            found[name] = min(value, found.get(name, math.inf))
    return found


def _told(entry: Mapping[str, Any], model: str | None) -> dict[str, float]:
    group, models, limits = (entry.get(name) for name in ("group", "models", "limits"))
    kind = group.get("type") if isinstance(group, dict) else entry.get("group_type")
    if kind == "model_group":
        of = [each for each in models if isinstance(each, str)] if isinstance(models, list) else []
        names = _OF_MODELS if model is None or catalog.same_model(model, of) else {}
    else:
        names = _OF_ENDPOINTS.get(kind, {}) if isinstance(kind, str) else {}
    found: dict[str, float] = {}
    for limit in limits if isinstance(limits, list) else []:
        name = names.get(str(limit.get("type"))) if isinstance(limit, dict) else None
        value: Any = limit.get("value") if name else None
        if name and type(value) in {int, float} and 0 < value < math.inf:
            found[name] = min(float(value), found.get(name, math.inf))
    return found
