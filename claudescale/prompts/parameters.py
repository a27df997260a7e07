"""What a request says besides its texts: further fields of the API, tools and their charges, thinking."""

from __future__ import annotations

import json
import numbers
import tomllib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias, cast

from claudescale.api import catalog
from claudescale.api.catalog import BATCH, CHARGES
from claudescale.errors import PlanError, nearest

if TYPE_CHECKING:
    from claudescale.api.catalog import Model

Fields: TypeAlias = Mapping[str, Any]

FACTS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("parameters.toml").read_text("utf-8"))
_FITS: dict[str, Callable[[Any], bool]] = {
    "inference_geo": lambda value: value in CHARGES.geographies,
    "service_tier": lambda value: value in FACTS["service_tiers"],
    "speed": lambda value: value == "standard",
    "metadata": lambda value: (
        isinstance(value, Mapping)
        and set(value) <= {"user_id"}
        and isinstance(value.get("user_id"), str | None)
    ),
    "stop_sequences": lambda value: (
        isinstance(value, list | tuple) and all(isinstance(text, str) and text.strip() for text in value)
    ),
    "output_config": lambda value: isinstance(value, Mapping),
    "tools": lambda value: (
        isinstance(value, list | tuple) and all(isinstance(tool, Mapping) for tool in value)
    ),
    "tool_choice": lambda value: isinstance(value, Mapping) and value.get("type") in FACTS["tool_choices"],
}
"""Of fields in `params`: whether a value is taken; what it has to be stands in the facts."""


class Charges(NamedTuple):
    """What can make a request cost more than its tokens at the list price."""

    inference_geo: str | None = None  # where it is asked to be answered; None leaves it to the workspace
    searches: int | None = 0  # most web searches; None is without end
    turns: int = 1  # most turns of the model in one answer, each of which reads all before it
    caches: bool = False  # a tool is marked for the cache


def refuse(message: str) -> NoReturn:
    """Raise what is wrong with a plan."""
    raise PlanError(message)


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


def as_json(value: object) -> str:
    """Return a value as compact JSON, always the same bytes for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def check_unicode(what: str, text: str) -> None:
    """Refuse text with a lone surrogate in it, which cannot be sent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = f"{what} has half a character (a lone surrogate) at position {error.start}. "
        msg += "Fix it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        raise PlanError(msg[0].upper() + msg[1:]) from error


def check_mode(params: Fields | None, mode: str) -> None:
    """Raise what is wrong with `params` in a mode: a batch refuses some of what a live call takes.

    Source: Anthropic, *Batch processing* (checked 2026-11-29).
    """
    for name in BATCH.refused_parameters if mode != "live" else ():
        if (params or {}).get(name) is not None:
            refuse(
                f"params has {name!r}, which batches refuse, and mode={mode!r} may send one. Leave it out."
            )


def checked(params: Fields, model: Model) -> dict[str, Any]:
    """Return the further fields of a request, without those left unset; PlanError for what cannot be sent."""
    if not isinstance(params, Mapping):
        refuse(f"params={params!r:.60}is not a dict. Write params={{'stop_sequences': ['END']}}.")
    given = {name: value for name, value in params.items() if value is not None}
    for name in given:
        if name in FACTS["refused"]:
            refuse(f"params has {name!r}: {FACTS['refused'][name]}")
        if name not in FACTS["taken"]:
            refuse(
                f"params has {name!r}, which the API does not know: it would refuse every row."
                f"{nearest(str(name), FACTS['taken'])} There is: {', '.join(FACTS['taken'])}."
            )
    try:
        check_unicode("params", as_json(given))
    except (TypeError, ValueError) as error:
        if isinstance(error, PlanError):
            raise
        only = "Use only dict, list, str, int, float, bool and None."
        msg = f"params cannot be written as JSON: {error}. {only}"
        raise PlanError(msg) from error
    if "inference_geo" in given and model.id in CHARGES.no_inference_geo:
        refuse(f"{model.id} does not take inference_geo, which begins with Claude 4.6. Leave it out.")
    for name, fits in _FITS.items():
        if name in given and not fits(given[name]):
            refuse(f"params has {name}={given[name]!r:.60}: it is {FACTS['values'][name]}.")
    # Only the outermost names are sorted: the order inside tools and schemas may matter to the model.
    return dict(sorted(given.items()))


# ------------------------------------------------------------------------------------------------- tools


def tool_charges(
    model: Model, extra: dict[str, Any], thinking: Fields | None, *, typed: bool
) -> tuple[Charges, tuple[str, ...]]:
    """Raise what is wrong with the tools; return what a request may cost, and what is worth knowing of that.

    A row has nobody to run a client's tool, so one is taken only where the model must call it: what it is
    called with is then the row's reply. Of the tools that the API runs, those are taken that can be priced.
    """
    tools, choice = extra.get("tools", []), extra.get("tool_choice", {})
    charges = Charges(inference_geo=extra.get("inference_geo"), caches='"cache_control":' in as_json(tools))
    if choice and not tools:
        refuse("params has 'tool_choice' and no 'tools'. Leave it out.")
    own = [_is_own(tool) for tool in tools]
    if choice.get("type") in ("any", "tool"):
        called = _called(model, tools, choice, thinking, several=any(own))
        if own[called]:
            if choice.get("disable_parallel_tool_use") is False:
                refuse(
                    "tool_choice has disable_parallel_tool_use=False, and a row has one reply. Leave it out."
                )
            if typed:
                name = tools[called].get("name")
                refuse(f"returns= and the tool {name!r} both say what the reply looks like. Keep one.")
            extra["tool_choice"] = {**choice, "disable_parallel_tool_use": True}
            return charges, ()
    if any(own) and choice.get("type") != "none":
        name = tools[own.index(True)].get("name")
        refuse(
            f"params has the tool {name!r}, and a row has nobody to run it. Use returns= to get replies in a "
            "certain form. Or make the model call it, and its input is the reply: "
            f"'tool_choice': {{'type': 'tool', 'name': {name!r}}}."
        )
    served = [tool for tool, is_own in zip(tools, own, strict=True) if not is_own]
    return _served(charges, served) if served else (charges, ())


def _is_own(tool: Fields) -> bool:
    """Whether a tool is the client's to run; raise where it cannot be used."""
    kind, name = tool.get("type"), tool.get("name")
    if kind in (None, "custom"):
        if not isinstance(name, str) or not name or not isinstance(tool.get("input_schema"), Mapping):
            refuse(
                f"the tool {name!r} needs a 'name' and an 'input_schema', such as {{'type': 'object', ...}}."
            )
        return True
    known: dict[str, str] = FACTS["server_tools"]
    if kind not in known:
        refused = FACTS["refused_tools"].items()
        unknown = f"is not known here, so its price is not known.{nearest(str(kind), known)}"
        why = next((why for start, why in refused if str(kind).startswith(start)), unknown)
        refuse(f"the tool {kind!r} {why} There is: {', '.join(known)}.")
    if name != known[kind]:
        refuse(f"the tool {kind!r} is called {known[kind]!r}: write 'name': {known[kind]!r}.")
    uses = tool.get("max_uses")
    if uses is not None and (type(uses) is not int or uses < 1):
        refuse(f"the tool {name!r} has max_uses={uses!r}: it is a whole number from 1 on.")
    return False


def _called(
    model: Model, tools: Sequence[Fields], choice: Fields, thinking: Fields | None, *, several: bool
) -> int:
    """Return the place of the tool that the model must call."""
    kind, names = choice["type"], [tool.get("name") for tool in tools]
    if catalog.same_model(model.id, CHARGES.no_forced_tool):
        refuse(f"{model.id} does not take tool_choice {kind!r}. Use returns=, or another model.")
    if (thinking or {}).get("type") == "enabled":
        refuse(
            f"tool_choice {kind!r} cannot be used with thinking of the type 'enabled'. Leave thinking= out."
        )
    if kind == "tool" and choice.get("name") not in names:
        refuse(f"tool_choice names the tool {choice.get('name')!r}. There is: {', '.join(map(str, names))}.")
    if kind == "any" and several and len(tools) > 1:
        refuse(
            "tool_choice 'any' with several tools leaves the reply's form open. Name one with type 'tool'."
        )
    return names.index(choice["name"]) if kind == "tool" else 0


def _served(charges: Charges, tools: Sequence[Fields]) -> tuple[Charges, tuple[str, ...]]:
    """Return what tools that the API runs may cost a row; None of uses is without end."""
    uses: list[Any] = [tool.get("max_uses") for tool in tools]
    searches = [most for most, tool in zip(uses, tools, strict=True) if tool["name"] == "web_search"]
    # From 2026 on tools are called from code by default, and each piece of code is a turn of its own.
    from_code = [
        tool.get("allowed_callers", ["direct"] if tool["type"] in FACTS["called_directly"] else None)
        != ["direct"]
        for tool in tools
    ]
    turns = CHARGES.server_tool_turns
    if None not in uses and not any(from_code):
        turns = min(sum(uses) + 1, turns)
    fee = "Each web search has a fee; one per row is assumed. " if searches else ""
    note = f"{fee}What web tools find is billed as input. A pilot shows how much."
    return charges._replace(searches=None if None in searches else sum(searches), turns=turns), (note,)


# ---------------------------------------------------------------------------------------------- thinking


def thinking_of(
    model: Model, max_tokens: int, effort: str | None, thinking: Fields | None
) -> tuple[Fields | None, dict[str, Any]]:
    """Return the ``thinking`` and the ``output_config`` to send."""
    if effort is None and thinking is None:
        return model.thinking_off, {"effort": model.effort_for_bulk} if model.effort_for_bulk else {}
    if effort is not None and effort not in model.efforts:
        known = f"It takes {', '.join(model.efforts)}." if model.efforts else "Leave effort= out."
        refuse(f"{model.id} does not take effort={effort!r}. {known}")
    output = {"effort": effort} if effort else {}
    if thinking is None:
        return None, output
    kind = thinking.get("type") if isinstance(thinking, Mapping) else thinking
    if kind not in model.thinking_types:
        known = ", ".join(f"{{'type': {each!r}}}" for each in model.thinking_types)
        refuse(f"{model.id} does not take thinking of the type {kind!r}. It takes {known}.")
    thinking = {name: plain(value, whole=True) for name, value in thinking.items()}
    budget, least = thinking.get("budget_tokens"), FACTS["least_thinking_tokens"]
    if kind == "enabled" and (not isinstance(budget, int) or budget < least):
        refuse(
            f"thinking of the type 'enabled' needs budget_tokens from {least:,} to below "
            f"max_tokens: thinking={{'type': 'enabled', 'budget_tokens': {least}}}."
        )
    fields, displays = FACTS["thinking"].get(kind, ["type"]), FACTS["displays"]
    if wrong := next((name for name in thinking if name not in fields), None):
        refuse(f"thinking of the type {kind!r} has {wrong!r}. It takes {' and '.join(map(repr, fields))}.")
    if thinking.get("display") not in (None, *displays):
        refuse(f"thinking has display={thinking['display']!r}: it is {' or '.join(map(repr, displays))}.")
    bound, off = model.thinking_off_up_to_effort, (model.thinking_off or {}).get("type")
    if kind == off and effort and bound and model.efforts.index(effort) > model.efforts.index(bound):
        refuse(f"{model.id} cannot keep thinking off at effort={effort!r}. Use effort={bound!r} or less.")
    if isinstance(budget, int) and budget >= max_tokens:
        why = f"thinking's budget_tokens={budget:,} must be below max_tokens={max_tokens:,}."
        refuse(f"{why} Raise max_tokens=.")
    return thinking, output
