"""The constant part of a request: what every row's body shares, checked against what the model takes."""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

from claudescale.api import catalog
from claudescale.api.catalog import BATCH, CHARGES
from claudescale.errors import PlanError, nearest
from claudescale.prompts.templates import check_unicode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from claudescale.api.catalog import Model
    from claudescale.prompts.replies import Returns

Cache: TypeAlias = bool | Literal["5m", "1h"]

_OWN_ARGUMENTS = {
    "model": "Use model= instead.",
    "messages": "Use the prompt instead.",
    "max_tokens": "Use max_tokens= instead.",
    "system": "Use system= instead.",
    "thinking": "Use thinking= instead.",
    "cache_control": "Use cache=True instead, which marks the shared prefix and not the row.",
    "output_format": "Use returns= instead.",
}
_TAKEN = (
    "diagnostics", "inference_geo", "metadata", "output_config", "service_tier", "speed", "stop_sequences",
    "tool_choice", "tools",
)  # fmt: skip
_SAMPLING = ("temperature", "top_p", "top_k")
_REFUSED = {
    "stream": "a run reads whole replies.",
    "fallbacks": "another model may answer, at its own price, and batches refuse it.",
    "mcp_servers": "what their tools cost cannot be told before or after.",
    "container": "what runs in it is billed by the hour, which no reply tells.",
    "compaction": "the reply would be a summary, billed apart from its usage.",
    "context_management": "it may compact the context, which is billed apart from the reply's usage.",
    "thread": "every row is a conversation of its own.",
    "billing_policy": "somebody else would be billed, and this plan counts dollars that you pay.",
    "fallback_credit_token": "it belongs to one request, and a plan has many.",
}
"""Fields of the SDK's types that a row cannot have. Source: anthropic 2.14.0, messages and beta messages."""
_OPTION = "an option of the SDK's call and no field of the API."
_HEADER = "sent as a header and no field of the API. Set it with client.with_options(default_headers={...})."
_NO_FIELD = dict.fromkeys(("extra_headers", "user_profile_id", "workspace_id", "betas"), _HEADER) | {
    "extra_body": f"{_OPTION} Put its fields straight into params.",
    "extra_query": f"{_OPTION} Leave it out.",
    "timeout": f"{_OPTION} Set it with client.with_options(timeout=...).",
}
_IN_BATCHES = ("batch", "hybrid", "auto")
_SERVICE_TIERS = ("auto", "standard_only")
_THINKING_FIELDS = {"adaptive": ("type", "display"), "enabled": ("type", "budget_tokens", "display")}
"""What ``thinking`` may have, by its type; the others have only that. Source: anthropic 2.14.0."""
_CHOICES = ("auto", "any", "tool", "none")
_CALLED_DIRECTLY = ("web_search_20250305", "web_fetch_20250910")
_SERVER_TOOLS = {
    **dict.fromkeys(("web_search_20250305", "web_search_20260209", "web_search_20260318"), "web_search"),
    **dict.fromkeys(
        ("web_fetch_20250910", "web_fetch_20260209", "web_fetch_20260309", "web_fetch_20260318"), "web_fetch"
    ),
}
"""Tools that the API runs and that can be priced, with their names. Source: anthropic 2.14.0, its tools."""
_NO_TOOL = {
    "code_execution": "is billed by the hour, which no reply tells.",
    "mcp_toolset": "calls servers whose cost cannot be told.",
    "advisor": "asks a second model, which is billed apart.",
    "tool_search": "finds tools that a row has nobody to run.",
    **dict.fromkeys(
        ("bash", "text_editor", "memory", "computer", "browser"), "is run by the client, and a row has none."
    ),
}
_DISPLAYS = ("summarized", "omitted")
_EXTRACTING = ("reasoning", "thinking", "trace")
"""Names of returned fields that may be taken for an attempt to extract the model's reasoning."""


class Charges(NamedTuple):
    """What can make a request cost more than its tokens at the list price.

    Attributes
    ----------
    inference_geo : str or None
        Where it is asked to be answered; None leaves it to the workspace.
    searches : int or None
        Most web searches; None is without end.
    turns : int
        Most turns of the model in one answer, each of which reads all before it.
    caches : bool
        A tool is marked for the cache.
    """

    inference_geo: str | None = None
    searches: int | None = 0
    turns: int = 1
    caches: bool = False


NO_CHARGES = Charges()


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
    charges : Charges
        What it may cost besides its tokens.
    """

    body: dict[str, Any]
    shared_characters: int
    notes: tuple[str, ...]
    charges: Charges


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
    extra = _checked_params(params or {}, model)
    max_tokens = plain(max_tokens, whole=True)
    if isinstance(thinking, Mapping):
        thinking = {name: plain(value, whole=True) for name, value in thinking.items()}
    if type(max_tokens) is not int or not 1 <= max_tokens <= model.max_output_tokens:
        most = f"{model.max_output_tokens:,}"
        msg = f"max_tokens={max_tokens!r}: it is a whole number, and {model.id} writes 1 to {most} tokens."
        raise PlanError(msg)
    thought, output = _thinking(model, max_tokens, effort, thinking)
    output |= _output(returns, extra.pop("output_config", None))
    charges, tool_notes = _check_tools(model, extra, thought, typed=returns is not None)
    body: dict[str, Any] = {"model": model.id, "max_tokens": max_tokens}
    control = _cache_control(cache, system)
    if system is not None:
        _check_system(system)
        body["system"] = [{"type": "text", "text": system, **control}] if control else system
    body |= ({"thinking": dict(thought)} if thought else {}) | ({"output_config": output} if output else {})
    tools = as_json(extra["tools"]) if extra.get("tools") else ""
    prefix = len(system or "") + len(tools)
    shared = prefix + (len(as_json(returns.json_schema)) if returns else 0)
    notes = (*(_cache_notes(model, prefix) if cache else ()), *tool_notes)
    notes += _extraction_notes(extra.get("tools"), output.get("format"))
    charges = charges._replace(inference_geo=extra.get("inference_geo"), caches='"cache_control":' in tools)
    return Constant(body | extra, shared, notes, charges)


def as_json(value: object) -> str:
    """Return a value as compact JSON, always the same bytes for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


_LEAST_THINKING_TOKENS = 1_024


def check_mode(params: Mapping[str, Any] | None, mode: str) -> None:
    """Raise what is wrong with `params` in a mode: a batch refuses some of what a live call takes.

    Source: Anthropic, *Batch processing* (checked 2026-11-29).
    """
    for name in BATCH.refused_parameters:
        if mode in _IN_BATCHES and (params or {}).get(name) is not None:
            msg = f"params has {name!r}, which batches refuse, and mode={mode!r} may send one. Leave it out."
            raise PlanError(msg)


def _checked_params(params: Mapping[str, Any], model: Model) -> dict[str, Any]:
    if not isinstance(params, Mapping):
        msg = f"params={params!r:.60} is no dict. Write params={{'stop_sequences': ['END']}}."
        raise PlanError(msg)
    given = {name: value for name, value in params.items() if value is not None}
    for name in given:
        if not isinstance(name, str):
            msg = f"params has {name!r}, which is no name: it is a dict of the API's own fields."
            raise PlanError(msg)
        _check_name(name)
    try:
        check_unicode("params", as_json(given))
    except (TypeError, ValueError) as error:
        if isinstance(error, PlanError):
            raise
        msg = (
            f"params cannot be written as JSON: {error}. Use only dict, list, str, int, float, bool and None."
        )
        raise PlanError(msg) from error
    _check_values(given, model)
    # Only the outermost names are sorted: the order inside tools and schemas may matter to the model.
    return dict(sorted(given.items()))


def _check_name(name: object) -> None:
    """Raise what is wrong with a name in `params`."""
    if name in _OWN_ARGUMENTS:
        msg = f"params has {name!r}. {_OWN_ARGUMENTS[str(name)]}"
        raise PlanError(msg)
    if name in _SAMPLING:
        msg = (
            f"params has {name!r}: the API (version 2026-10-21) takes no sampling parameters. "
            "Leave it out; for labels that do not vary use returns=pl.Enum([...])."
        )
        raise PlanError(msg)
    if name in _REFUSED:
        msg = f"params has {name!r}: {_REFUSED[str(name)]} Leave it out."
        raise PlanError(msg)
    if name in _NO_FIELD:
        msg = f"params has {name!r}, which is {_NO_FIELD[str(name)]}"
        raise PlanError(msg)
    if name not in _TAKEN:
        msg = (
            f"params has {name!r}, which the API does not know: it would refuse every row."
            f"{nearest(str(name), _TAKEN)} There is: {', '.join(_TAKEN)}."
        )
        raise PlanError(msg)


def _check_values(given: Mapping[str, Any], model: Model) -> None:
    """Raise what the API would refuse of the values in `params`, or what is not priced here."""
    geo = given.get("inference_geo")
    if geo is not None and model.id in CHARGES.no_inference_geo:
        msg = f"{model.id} does not take inference_geo, which begins with Claude 4.6. Leave it out."
        raise PlanError(msg)
    if geo is not None and geo not in CHARGES.geographies:
        msg = f"inference_geo={geo!r}: it is {_either(CHARGES.geographies)}."
        raise PlanError(msg)
    if given.get("speed", "standard") != "standard":
        msg = (
            f"params has speed={given['speed']!r}, which costs more and is not priced here: estimate, "
            "bill and budget would be too low. Leave it out."
        )
        raise PlanError(msg)
    if given.get("service_tier", "auto") not in _SERVICE_TIERS:
        msg = f"service_tier={given['service_tier']!r}: it is {_either(_SERVICE_TIERS)}."
        raise PlanError(msg)
    metadata = given.get("metadata", {})
    fits = isinstance(metadata, Mapping) and set(metadata) <= {"user_id"}
    if not fits or not isinstance(metadata.get("user_id", ""), str | None):
        msg = f"metadata={metadata!r:.60}: the API takes {{'user_id': '...'}} there and nothing else."
        raise PlanError(msg)
    stops = given.get("stop_sequences", [])
    if not isinstance(stops, list | tuple) or not all(
        isinstance(each, str) and each.strip() for each in stops
    ):
        msg = f"stop_sequences={stops!r:.60}: it is a list of texts that are not blank, such as ['END']."
        raise PlanError(msg)
    output = given.get("output_config", {})
    if not isinstance(output, Mapping):
        msg = f"output_config={output!r:.60}: it is a dict, such as {{'format': {{...}}}}."
        raise PlanError(msg)


def _either(words: Sequence[str]) -> str:
    return " or ".join(map(repr, words))


def _check_tools(
    model: Model, extra: dict[str, Any], thinking: Mapping[str, Any] | None, *, typed: bool
) -> tuple[Charges, tuple[str, ...]]:
    """Raise what is wrong with the tools; return what they may cost, and what is worth knowing.

    A row has nobody to run a client's tool, so one is taken only where the model must call it: what it is
    called with is then the row's reply. Of the tools that the API runs, those are taken that can be priced.
    """
    tools, choice = extra.get("tools", []), extra.get("tool_choice")
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        msg = f"tools={tools!r:.60}: it is a list of dicts, one for each tool."
        raise PlanError(msg)
    if choice is not None and not tools:
        msg = "params has 'tool_choice' and no 'tools'. Leave it out."
        raise PlanError(msg)
    kinds = [_tool_kind(tool) for tool in tools]
    forced = _forced_tool(model, tools, kinds, choice, thinking)
    if forced is not None:
        if typed:
            msg = f"returns= and the tool {forced!r} both say what the reply looks like. Keep one."
            raise PlanError(msg)
        extra["tool_choice"] = {**(choice or {}), "disable_parallel_tool_use": True}
        return NO_CHARGES, ()
    if "client" in kinds and (choice or {}).get("type") != "none":
        name = tools[kinds.index("client")].get("name")
        msg = (
            f"params has the tool {name!r}, and a row has nobody to run it. Use returns= to get replies in a "
            "certain form. Or make the model call it, and its input is the reply: "
            f"'tool_choice': {{'type': 'tool', 'name': {name!r}}}."
        )
        raise PlanError(msg)
    return _server_charges(tools, kinds)


def _tool_kind(tool: Mapping[str, Any]) -> str:
    """Return who runs a tool, ``"client"``, or its family at the API; raise where it cannot be used."""
    kind, name = tool.get("type"), tool.get("name")
    if kind in (None, "custom"):
        if not isinstance(name, str) or not name or not isinstance(tool.get("input_schema"), Mapping):
            msg = (
                f"the tool {name!r} needs a 'name' and an 'input_schema', such as {{'type': 'object', ...}}."
            )
            raise PlanError(msg)
        return "client"
    family = _SERVER_TOOLS.get(str(kind))
    if family is None:
        why = next((why for start, why in _NO_TOOL.items() if str(kind).startswith(start)), "")
        msg = (
            f"the tool {kind!r} {why or 'is not known here, so what it costs is not either.'}"
            f"{'' if why else nearest(str(kind), _SERVER_TOOLS)} There is: {', '.join(_SERVER_TOOLS)}."
        )
        raise PlanError(msg)
    if name != family:
        msg = f"the tool {kind!r} is called {family!r}: write 'name': {family!r}."
        raise PlanError(msg)
    uses = tool.get("max_uses")
    if uses is not None and (type(uses) is not int or uses < 1):
        msg = f"the tool {family!r} has max_uses={uses!r}: it is a whole number from 1 on."
        raise PlanError(msg)
    return family


def _forced_tool(
    model: Model,
    tools: Sequence[Mapping[str, Any]],
    kinds: Sequence[str],
    choice: Any,
    thinking: Mapping[str, Any] | None,
) -> str | None:
    """Return the name of the client's tool that the model must call, if there is one."""
    if choice is None:
        return None
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if not isinstance(choice, Mapping) or kind not in _CHOICES:
        msg = f"tool_choice={choice!r:.60}: it is a dict whose 'type' is {_either(_CHOICES)}."
        raise PlanError(msg)
    if kind not in ("any", "tool"):
        return None
    if catalog.same_model(model.id, CHARGES.no_forced_tool):
        msg = f"{model.id} does not take tool_choice {kind!r}. Use returns=, or another model."
        raise PlanError(msg)
    if (thinking or {}).get("type") == "enabled":
        msg = f"tool_choice {kind!r} cannot be used with thinking of the type 'enabled'. Leave thinking= out."
        raise PlanError(msg)
    names = [tool.get("name") for tool in tools]
    if kind == "tool" and choice.get("name") not in names:
        msg = f"tool_choice names the tool {choice.get('name')!r}. There is: {', '.join(map(str, names))}."
        raise PlanError(msg)
    at = names.index(choice["name"]) if kind == "tool" else 0
    if kind == "any" and len(tools) > 1 and "client" in kinds:
        msg = "tool_choice 'any' with several tools leaves the reply's form open. Name one with type 'tool'."
        raise PlanError(msg)
    if kinds[at] != "client":
        return None
    if choice.get("disable_parallel_tool_use") is False:
        msg = "tool_choice has disable_parallel_tool_use=False, and a row has one reply. Leave it out."
        raise PlanError(msg)
    return str(names[at])


def _server_charges(
    tools: Sequence[Mapping[str, Any]], kinds: Sequence[str]
) -> tuple[Charges, tuple[str, ...]]:
    """Return what tools that the API runs may cost a row, and what is worth knowing of that."""
    used = [(tool, kind) for tool, kind in zip(tools, kinds, strict=True) if kind != "client"]
    if not used:
        return NO_CHARGES, ()
    searches: list[int | None] = [tool.get("max_uses") for tool, kind in used if kind == "web_search"]
    uses: list[int | None] = [tool.get("max_uses") for tool, _ in used]
    # From 2026 on tools are called from code by default, and each piece of code is a turn of its own.
    direct = all(
        tool.get("allowed_callers", ["direct"] if tool["type"] in _CALLED_DIRECTLY else None) == ["direct"]
        for tool, _ in used
    )
    calls = _sum(uses) if direct else None
    turns = CHARGES.server_tool_turns if calls is None else min(calls + 1, CHARGES.server_tool_turns)
    fee = "Each web search has a fee, and one a row is assumed. " if searches else ""
    note = f"{fee}What web tools find is paid for as input. A pilot shows how much that is."
    return Charges(searches=_sum(searches), turns=turns), (note,)


def _sum(uses: Sequence[int | None]) -> int | None:
    """Return a sum, None where a part of it is without end."""
    known = [each for each in uses if each is not None]
    return sum(known) if len(known) == len(uses) else None


def _extraction_notes(tools: Any, output_format: Any) -> tuple[str, ...]:
    """Return a warning where a field of the reply is named as if the model's reasoning were asked for."""
    named = [name for name in _properties([tools, output_format]) if name.lower() in _EXTRACTING]
    if not named:
        return ()
    note = (
        f"A returned field called {named[0]!r} can make the model decline (reasoning_extraction), and such a "
        "refusal is billed. Rename it, for example to 'why'."
    )
    return (note,)


def _properties(value: Any) -> Iterator[str]:
    """Yield the names of all fields of the JSON schemas in a value."""
    if isinstance(value, Mapping):
        named = value.get("properties")
        yield from map(str, named) if isinstance(named, Mapping) else ()
        for each in value.values():
            yield from _properties(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _properties(each)


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
    _check_thinking_fields(kind, thinking)
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


def _check_thinking_fields(kind: Any, thinking: Mapping[str, Any] | None) -> None:
    """Raise what the API would refuse besides the type of ``thinking``."""
    given = thinking or {}
    fields = _THINKING_FIELDS.get(str(kind), ("type",))
    wrong = next((name for name in given if name not in fields), None)
    if wrong is not None:
        msg = f"thinking of the type {kind!r} has {wrong!r}. It takes {' and '.join(map(repr, fields))}."
        raise PlanError(msg)
    if given.get("display") not in (None, *_DISPLAYS):
        msg = f"thinking has display={given['display']!r}: it is {_either(_DISPLAYS)}."
        raise PlanError(msg)


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
