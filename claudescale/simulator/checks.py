"""What the API refuses with a 400 or 404, and in which words.

The messages follow the API's where they are known; their exact wording is not promised by anyone.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale import catalog
from claudescale.errors import UnknownModel
from claudescale.simulator.schemas import schema_problem, shape_problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSIONS = frozenset({"2023-06-01", "2026-10-21"})
OLD_VERSION = "2023-06-01"
COUNTED = frozenset(
    {
        *(
            "model",
            "messages",
            "system",
            "cache_control",
            "mcp_servers",
            "output_config",
            "speed",
            "thinking",
        ),
        *("tool_choice", "tools", "context_management", "user_profile_id"),
    }
)
FIELDS = COUNTED | {
    *("max_tokens", "container", "diagnostics", "fallbacks", "inference_geo", "metadata", "service_tier"),
    *("stop_sequences", "stream", "workspace_id"),
}
SAMPLING = {
    "temperature": 1.0,
    "top_p": None,
    "top_k": None,
}  # the values newer models still pass on 2023-06-01
NO_FORCED_TOOL = frozenset({"claude-opus-5-5", "claude-sonnet-5-5", "claude-fable-5-1", "claude-fable-5-2"})
FAST = frozenset({"claude-fable-5-2", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8"})
PREFILL_UNTIL = (4, 5)  # Claude 4.6 and later refuse an assistant message at the end
FEW_THINKING_TOKENS = 1024
MAX_BREAKPOINTS = 4
GENERATION = re.compile(r"-(\d+)(?:-(\d{1,2}))?(?:-|$)")


class Problem(NamedTuple):
    """Why a request is refused."""

    status: int
    type: str
    message: str


def invalid(message: str) -> Problem:
    """Return a 400."""
    return Problem(400, "invalid_request_error", message)


def version_problem(headers: Mapping[str, str]) -> Problem | None:
    """Return what is wrong with the ``anthropic-version`` header."""
    version = headers.get("anthropic-version")
    if version is None:
        return invalid("anthropic-version: header is required")
    if version not in VERSIONS:
        return invalid(f"anthropic-version: {version!r} is not a valid version")
    return None


def found_model(body: Mapping[str, Any], now: float) -> catalog.Model | Problem:
    """Return the model a request names."""
    name = body.get("model")
    if name is None:
        return invalid("model: Field required")
    if not isinstance(name, str):
        return invalid("model: Input should be a valid string")
    try:
        found = catalog.callable_model(name, datetime.fromtimestamp(now, UTC))
    except UnknownModel:
        return Problem(404, "not_found_error", f"model: {name}")
    if found.verified_only:
        return Problem(404, "not_found_error", f"model: {name}")
    return found


def problem(
    body: Mapping[str, Any], model: catalog.Model, version: str = "2026-10-21", *, counting: bool = False
) -> Problem | None:
    """Return the first thing the API would refuse in a request, or None.

    Parameters
    ----------
    counting : bool
        The request asks for a token count: no `max_tokens`, fewer fields.
    """
    for message in _messages(body, model, version, counting=counting):
        return invalid(message)
    return None


def _messages(
    body: Mapping[str, Any], model: catalog.Model, version: str, *, counting: bool
) -> Iterator[str]:
    allowed = COUNTED if counting else FIELDS
    for name in body:
        if name not in allowed and not (name in SAMPLING and version == OLD_VERSION):
            yield f"{name}: Extra inputs are not permitted"
    if version == OLD_VERSION:
        yield from _sampling(body, model)
    if not counting:
        yield from _max_tokens(body, model)
    yield from _conversation(body, model)
    yield from _system(body)
    yield from _tools(body, model)
    yield from _cache(body)
    yield from _output(body, model)
    yield from _thinking(body, model)
    yield from _options(body, model)


def _sampling(body: Mapping[str, Any], model: catalog.Model) -> Iterator[str]:
    for name, default in SAMPLING.items():
        if name in body and model.tokenizer == "2026" and body[name] != default:
            yield f"{name}: `{name}` may only be set to its default on {model.id}"


def _max_tokens(body: Mapping[str, Any], model: catalog.Model) -> Iterator[str]:
    value = body.get("max_tokens")
    if value is None:
        yield "max_tokens: Field required"
    elif not isinstance(value, int) or isinstance(value, bool):
        yield "max_tokens: Input should be a valid integer"
    elif value < 0:
        yield "max_tokens: Input should be greater than or equal to 0"
    elif value > model.max_output_tokens:
        yield (
            f"max_tokens: {value} > {model.max_output_tokens}, which is the maximum allowed number of output "
            f"tokens for {model.snapshot}"
        )


def _conversation(body: Mapping[str, Any], model: catalog.Model) -> Iterator[str]:
    messages = body.get("messages")
    if messages is None:
        yield "messages: Field required"
        return
    if not isinstance(messages, list):
        yield "messages: Input should be a valid list"
        return
    if not messages:
        yield "messages: at least one message is required"
        return
    if len(messages) > catalog.MESSAGE.max_messages:
        yield f"messages: at most {catalog.MESSAGE.max_messages} messages are allowed"
    for index, message in enumerate(messages):
        yield from _turn(index, message)
    if messages[0].get("role") != "user":
        yield 'messages: first message must use the "user" role'
    if messages[-1].get("role") == "assistant" and generation(model.id) > PREFILL_UNTIL:
        yield (
            "This model does not support assistant message prefill. "
            "The conversation must end with a user message."
        )


def _turn(index: int, message: Any) -> Iterator[str]:
    where = f"messages.{index}"
    if not isinstance(message, dict):
        yield f"{where}: Input should be a valid dictionary"
        return
    if message.get("role") not in ("user", "assistant"):
        yield f"{where}.role: Input should be 'user' or 'assistant'"
    for name in message:
        if name not in ("role", "content"):
            yield f"{where}.{name}: Extra inputs are not permitted"
    yield from _content(where, message.get("role"), message.get("content"))


def _content(where: str, role: Any, content: Any) -> Iterator[str]:
    if content is None:
        yield f"{where}.content: Field required"
    elif not isinstance(content, (str, list)):
        yield f"{where}.content: Input should be a valid string"
    elif not content or (isinstance(content, str) and not content.strip() and role == "user"):
        yield f"{where}: {role} messages must have non-empty content"
    elif isinstance(content, list):
        for place, block in enumerate(content):
            if not isinstance(block, dict) or not isinstance(block.get("type"), str):
                yield f"{where}.content.{place}.type: Field required"
            elif block["type"] == "text" and not isinstance(block.get("text"), str):
                yield f"{where}.content.{place}.text.text: Field required"
            elif block["type"] == "text" and not block["text"].strip():
                yield "messages: text content blocks must be non-empty"


def _system(body: Mapping[str, Any]) -> Iterator[str]:
    system = body.get("system")
    if system is None or isinstance(system, str):
        return
    if not isinstance(system, list):
        yield "system: Input should be a valid list"
        return
    for index, block in enumerate(system):
        if (
            not isinstance(block, dict)
            or block.get("type") != "text"
            or not isinstance(block.get("text"), str)
        ):
            yield f"system.{index}.type: Input should be 'text'"
            return
        if not block["text"]:
            yield "system: text content blocks must be non-empty"


def _cache(body: Mapping[str, Any]) -> Iterator[str]:
    controls = [tool.get("cache_control") for tool in body.get("tools") or () if isinstance(tool, dict)]
    lists = [body.get("system"), *(message["content"] for message in body["messages"])]
    for blocks in lists:
        if isinstance(blocks, list):
            controls.extend(block.get("cache_control") for block in blocks)
    marks = [control for control in [*controls, body.get("cache_control")] if control is not None]
    ttls = []
    for mark in marks:
        if not isinstance(mark, dict) or mark.get("type") != "ephemeral":
            yield "cache_control.type: Input should be 'ephemeral'"
            return
        ttls.append(mark.get("ttl", "5m"))
        if ttls[-1] not in ("5m", "1h"):
            yield "cache_control.ephemeral.ttl: Input should be '5m' or '1h'"
            return
    if len(marks) > MAX_BREAKPOINTS:
        yield f"A maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided. Found {len(marks)}."
    if ttls != sorted(ttls):
        yield "cache_control: a ttl='1h' block must not come after a ttl='5m' block"


def _output(body: Mapping[str, Any], model: catalog.Model) -> Iterator[str]:
    config = body.get("output_config")
    if config is None:
        return
    if not isinstance(config, dict):
        yield "output_config: Input should be a valid dictionary"
        return
    for name in config:
        if name not in ("effort", "format", "task_budget"):
            yield f"output_config.{name}: Extra inputs are not permitted"
    effort = config.get("effort")
    if effort is not None and not model.efforts:
        yield "This model does not support the effort parameter."
    elif effort is not None and effort not in model.efforts:
        yield f"output_config.effort: Input should be one of {', '.join(map(repr, model.efforts))}"
    if config.get("format") is not None:
        yield from _format(config["format"], model)


def _format(wanted: Any, model: catalog.Model) -> Iterator[str]:
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        yield "output_config.format.type: Input should be 'json_schema'"
    elif not isinstance(wanted.get("schema"), dict):
        yield "output_config.format.schema: Field required"
    elif not model.structured_outputs:
        yield "output_config.format: structured outputs are not supported on this model"
    elif found := schema_problem(wanted["schema"]):
        yield f"output_config.format.schema: {found}"


def _thinking(body: Mapping[str, Any], model: catalog.Model) -> Iterator[str]:
    asked = body.get("thinking")
    if asked is None:
        return
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind not in ("adaptive", "disabled", "enabled", "between_tools"):
        yield "thinking.type: Input should be 'adaptive', 'between_tools', 'disabled' or 'enabled'"
        return
    if kind not in model.thinking_types:
        yield (
            f'"thinking.type.{kind}" is not supported for this model. '
            f"Supported: {', '.join(model.thinking_types) or 'none'}."
        )
    if kind == "enabled":
        budget, limit = asked.get("budget_tokens"), body.get("max_tokens")
        if not isinstance(budget, int) or budget < FEW_THINKING_TOKENS:
            yield f"thinking.budget_tokens: Input should be greater than or equal to {FEW_THINKING_TOKENS}"
        elif isinstance(limit, int) and budget >= limit:
            yield "`max_tokens` must be greater than `thinking.budget_tokens`."
    bound = model.thinking_off_up_to_effort
    effort = (body.get("output_config") or {}).get("effort")
    if kind in ("disabled", "between_tools") and bound and effort in model.efforts:
        order = model.efforts
        if order.index(effort) > order.index(bound):
            yield f'"thinking.type.{kind}" is not supported at effort {effort!r}: use {bound!r} or lower'


def _tools(body: Mapping[str, Any], model: catalog.Model) -> Iterator[str]:
    tools = body.get("tools")
    if tools is not None:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            yield "tools: Input should be a valid list"
            return
        for index, tool in enumerate(tools):
            if not isinstance(tool.get("name"), str):
                yield f"tools.{index}.custom.name: Field required"
            elif "input_schema" not in tool and tool.get("type", "custom") == "custom":
                yield f"tools.{index}.custom.input_schema: Field required"
            elif "input_schema" in tool and (found := shape_problem(tool["input_schema"])):
                yield f"tools.{index}.custom.input_schema: {found}"
    if body.get("tool_choice") is not None:
        yield from _choice(body["tool_choice"], tools, model)


def _choice(choice: Any, tools: Any, model: catalog.Model) -> Iterator[str]:
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind not in ("auto", "any", "tool", "none"):
        yield "tool_choice.type: Input should be 'any', 'auto', 'none' or 'tool'"
    elif kind in ("any", "tool") and model.id in NO_FORCED_TOOL:
        yield f"tool_choice.type: {kind!r} is not supported on this model"
    elif kind in ("any", "tool") and not tools:
        yield "tool_choice: may only be specified while providing `tools`"


def _options(body: Mapping[str, Any], model: catalog.Model) -> Iterator[str]:
    if body.get("service_tier", "auto") not in ("auto", "standard_only"):
        yield "service_tier: Input should be 'auto' or 'standard_only'"
    speed = body.get("speed")
    if speed not in (None, "standard", "fast"):
        yield "speed: Input should be 'fast' or 'standard'"
    elif speed == "fast" and model.id not in FAST:
        yield "speed: fast mode is not supported on this model"
    if not isinstance(body.get("stream", False), bool):
        yield "stream: Input should be a valid boolean"
    stops = body.get("stop_sequences")
    if stops is not None and not (isinstance(stops, list) and all(isinstance(each, str) for each in stops)):
        yield "stop_sequences: Input should be a valid list"
    elif stops and not all(each.strip() for each in stops):
        yield "stop_sequences: each stop sequence must contain non-whitespace"
    metadata = body.get("metadata")
    if metadata is not None and not (isinstance(metadata, dict) and set(metadata) <= {"user_id"}):
        yield "metadata: Extra inputs are not permitted"


def generation(model_id: str) -> tuple[int, int]:
    """Return the generation of a model by its id: (4, 5) for ``claude-haiku-4-5``."""
    found = GENERATION.search(model_id)
    return (int(found.group(1)), int(found.group(2) or 0)) if found else (0, 0)
