"""What can be looked up: models and the account's rate limits."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from claudescale.api import catalog
from claudescale.simulator.checks import Problem, invalid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from claudescale.simulator.terms import Terms

UNKNOWN_TIME = "1970-01-01T00:00:00Z"  # the API's own value for a release date it does not know
SNAPSHOT_DATE = re.compile(r"-(\d{4})(\d{2})(\d{2})$")
EFFORTS = ("low", "medium", "high", "xhigh", "max")
THINKING_TYPES = ("adaptive", "between_tools", "disabled", "enabled")
MAX_PAGE = 1000
DEFAULT_PAGE = 20


Known: TypeAlias = catalog.Model | catalog.RetiredModel


def _supported(*, supported: bool) -> dict[str, bool]:
    return {"supported": supported}


def _midnight(day: date | None) -> str | None:
    return None if day is None else f"{day.isoformat()}T00:00:00Z"


def model_info(model: Known, at: datetime) -> dict[str, Any]:
    """Return a model as the Models API shows it at a moment."""
    dated = SNAPSHOT_DATE.search(model.snapshot)
    version = model.id.removeprefix("claude-").replace("-latest", "")
    line, *numbers = SNAPSHOT_DATE.sub("", version).split("-")
    info: dict[str, Any] = {
        "id": model.snapshot,
        "type": "model",
        "display_name": f"Claude {line.capitalize()} {'.'.join(numbers)}".strip(),
        "created_at": "{}-{}-{}T00:00:00Z".format(*dated.groups()) if dated else UNKNOWN_TIME,
        "line": model.line,
        "deprecated_at": None,
        "retires_at": f"{model.retires_at:%Y-%m-%dT%H:%M:%SZ}" if model.retires_at else None,
        "lifecycle": "retired",
        "max_input_tokens": None,
        "max_tokens": None,
        "capabilities": None,
    }
    if isinstance(model, catalog.RetiredModel):
        return info
    stands = catalog.lifecycle(model, at)
    return {
        **info,
        "lifecycle": "active" if stands == "legacy" else stands,
        "deprecated_at": _midnight(model.deprecated_on),
        "max_input_tokens": model.context_tokens,
        "max_tokens": model.max_output_tokens,
        "capabilities": _capabilities(model),
    }


def _capabilities(model: catalog.Model) -> dict[str, Any]:
    yes = _supported(supported=True)
    efforts = {effort: _supported(supported=effort in model.efforts) for effort in EFFORTS}
    types = {kind: _supported(supported=kind in model.thinking_types) for kind in THINKING_TYPES}
    thinks = bool({"adaptive", "enabled"} & set(model.thinking_types)) or model.thinks_by_default
    return {
        "batch": _supported(supported=model.batch),
        "citations": yes,
        "code_execution": yes,
        "context_management": yes,
        "effort": {"supported": bool(model.efforts), **efforts},
        "image_input": yes,
        "pdf_input": yes,
        "server_tools": {"supported": True, "code_execution": yes, "web_search": yes},
        "structured_outputs": _supported(supported=model.structured_outputs),
        "thinking": {"supported": thinks, "types": types},
    }


def _known() -> list[Known]:
    offered = (model for model in catalog.MODELS.values() if not model.verified_only)
    return [*offered, *catalog.RETIRED.values()]


def models_page(now: float, query: Mapping[str, Sequence[str]]) -> dict[str, Any] | Problem:
    """Return the answer to ``GET /v1/models``."""
    at = datetime.fromtimestamp(now, UTC)
    asked = [*query.get("lifecycle[]", ()), *query.get("lifecycle", ())]
    wanted = {each for value in asked for each in value.split(",")} or {"active", "deprecated"}
    infos = [model_info(model, at) for model in _known()]
    return page([info for info in infos if info["lifecycle"] in wanted], query)


def one_model(now: float, name: str) -> dict[str, Any] | Problem:
    """Return the answer to ``GET /v1/models/{id}``."""
    at = datetime.fromtimestamp(now, UTC)
    for model in _known():
        if name in {model.id, model.snapshot}:
            return model_info(model, at)
    return Problem(404, "not_found_error", f"model: {name}")


def page(items: Sequence[dict[str, Any]], query: Mapping[str, Sequence[str]]) -> dict[str, Any] | Problem:
    """Return one page of `items`, which have an ``id`` and are in the order of the list."""
    text = query.get("limit", [str(DEFAULT_PAGE)])[0]
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PAGE:
        return invalid(f"limit: Input should be a number from 1 to {MAX_PAGE}")
    limit = int(text)
    ids = [item["id"] for item in items]
    if "before_id" in query:
        end = ids.index(query["before_id"][0]) if query["before_id"][0] in ids else 0
        start = max(0, end - limit)
        more = start > 0
    else:
        after = query.get("after_id", [""])[0]
        start = ids.index(after) + 1 if after in ids else 0
        end = min(len(items), start + limit)
        more = end < len(items)
    found = list(items[start:end])
    return {
        "data": found,
        "has_more": more,
        "first_id": found[0]["id"] if found else None,
        "last_id": found[-1]["id"] if found else None,
    }


def rate_limits(terms: Terms, now: float, query: Mapping[str, Sequence[str]]) -> dict[str, Any] | Problem:
    """Return the answer to ``GET /v1/organizations/rate_limits``."""
    at = datetime.fromtimestamp(now, UTC)
    groups: dict[str, list[catalog.Model]] = {}
    for model in catalog.MODELS.values():
        if not model.verified_only and catalog.lifecycle(model, at) != "retired":
            groups.setdefault(model.rate_group, []).append(model)
    items = [_model_group(terms, name, models) for name, models in groups.items()]
    queue, calls = terms.batch_queue_requests, terms.batch_requests_per_minute
    items.append(_entry("batch", "batch", {"enqueued_batch_requests": queue, "requests_per_minute": calls}))
    items.append(_entry("token_count", "token_count", {"requests_per_minute": terms.count_tokens_per_minute}))
    if "group_type" in query:
        items = [item for item in items if item["group"]["type"] == query["group_type"][0]]
    if "model" in query:
        items = [item for item in items if query["model"][0] in (item["models"] or ())]
        if not items:
            return Problem(404, "not_found_error", f"model: {query['model'][0]}")
    start = int(query["page"][0].removeprefix("page_")) if "page" in query else 0
    limit = int(query["limit"][0]) if "limit" in query else len(items)
    following = f"page_{start + limit}" if start + limit < len(items) else None
    return {"data": items[start : start + limit], "next_page": following}


def _model_group(terms: Terms, name: str, models: list[catalog.Model]) -> dict[str, Any]:
    rates = terms.rates(name)
    limits = {
        "requests_per_minute": rates.requests_per_minute,
        "input_tokens_per_minute_cache_aware": rates.input_tokens_per_minute,
        "output_tokens_per_minute": rates.output_tokens_per_minute,
    }
    entry = _entry(f"claude_{name.replace('-', '_')}", "model_group", limits)
    entry["group"]["display_name"] = f"Claude {name.replace('-', ' ').title()}"
    entry["models"] = list(dict.fromkeys(each for model in models for each in (model.id, model.snapshot)))
    return entry


def _entry(group: str, kind: str, limits: Mapping[str, float]) -> dict[str, Any]:
    return {
        "id": f"rl_sim_{group}",
        "type": "rate_limit",
        "group": {"id": group, "type": kind},
        "models": None,
        "limits": [{"type": name, "value": round(value)} for name, value in limits.items()],
    }
