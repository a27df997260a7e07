"""What the API refuses with a 400 or 404, and in which words.

The messages follow the API's where they are known; their exact wording is not promised by anyone.
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.api import catalog
from claudescale.errors import UnknownModel
from claudescale.simulator.schemas import schema_problem, shape_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

VERSIONS = frozenset({"2023-06-01", "2026-10-21"})
OLD_VERSION = "2023-06-01"
COUNTED = frozenset(
    {
        *("model", "messages", "system", "cache_control", "output_config", "speed", "thinking"),
        *("tool_choice", "tools", "user_profile_id"),
    }
)
FIELDS = COUNTED | {
    *("max_tokens", "container", "diagnostics", "inference_geo", "metadata", "service_tier"),
    *("stop_sequences", "stream", "workspace_id"),
}
BETAS: dict[str, str | tuple[str, ...]] = {  # what is taken only with an anthropic-beta header that begins so
    "mcp_servers": "mcp-client-",
    "context_management": ("context-management-", "compact-"),
    "fallbacks": "server-side-fallback-",
    "fallback_credit_token": "fallback-credit-",
    "thread": "message-threads-",
    "compaction": "compact-",
    "billing_policy": "user-profiles-",
    **dict.fromkeys(("claude-opus-5", "claude-opus-4-8"), "fast-mode-"),  # their `speed`
}
_RESULTS = ("web_search", "web_fetch", "code_execution", "bash_code_execution", "text_editor_code_execution")
BLOCKS: dict[str, tuple[str, ...] | None] = {  # what each holds besides its type, where that is looked into
    "text": ("text", "cache_control", "citations"),
    "image": ("source", "cache_control", "transformations"),
    "document": ("source", "cache_control", "citations", "context", "title"),
    **dict.fromkeys(("search_result", "thinking", "redacted_thinking", "tool_use", "tool_result")),
    **dict.fromkeys(("server_tool_use", *(f"{name}_tool_result" for name in (*_RESULTS, "tool_search")))),
    "container_upload": None,
}
TURNS = {  # the only role whose turns may hold a block
    **dict.fromkeys(("image", "document", "tool_result"), "user"),
    **dict.fromkeys(("thinking", "redacted_thinking", "tool_use"), "assistant"),
}
SOURCES = {
    "base64": ("media_type", "data"),
    "url": ("url",),
    "file": ("file_id",),
    "text": ("media_type", "data"),
    "content": ("content",),  # not of images
}
MEDIA = {  # how the bytes of each type begin
    "image/jpeg": b"\xff\xd8\xff",
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
    "application/pdf": b"%PDF-",
}
MOST_PIXELS = 8_000
TOOLS: dict[str, str | None] = {  # the API's own, each with the name it must have
    **{f"web_search_{day}": "web_search" for day in (20250305, 20260209, 20260318)},
    **{f"web_fetch_{day}": "web_fetch" for day in (20250910, 20260209, 20260309, 20260318)},
    **{f"code_execution_{day}": "code_execution" for day in (20250522, 20250825, 20260120, 20260521)},
    **{
        f"tool_search_tool_{way}{day}": f"tool_search_tool_{way}"
        for way in ("bm25", "regex")
        for day in ("", "_20251119")
    },
    "bash_20250124": "bash",
    "memory_20250818": "memory",
    "text_editor_20250124": "str_replace_editor",
    **{f"text_editor_{day}": "str_replace_based_edit_tool" for day in (20250429, 20250728)},
    "browser_toolset_20260801": None,
    "computer_toolset_20260801": None,
}
THINKING = {
    "adaptive": ("display",),
    "enabled": ("budget_tokens", "display"),
    "between_tools": (),
    "disabled": (),
}
CHOICES = {
    **dict.fromkeys(("any", "auto"), ("disable_parallel_tool_use",)),
    "none": (),
    "tool": ("name", "disable_parallel_tool_use"),
}
OPTIONS: dict[str, tuple[tuple[Any, ...], str]] = {  # the values of a field, or their types
    "service_tier": (("auto", "standard_only"), "Input should be 'auto' or 'standard_only'"),
    "speed": ((None, "standard", "fast"), "Input should be 'fast' or 'standard'"),
    "inference_geo": ((None, "global", "us"), "Input should be 'global' or 'us'"),
    "stream": ((bool,), "Input should be a valid boolean"),
    "metadata": ((type(None), dict), "Input should be a valid dictionary"),
    "metadata.user_id": ((type(None), str), "Input should be a valid string"),
    "diagnostics": ((type(None), dict), "Input should be a valid dictionary"),
    "diagnostics.previous_message_id": ((type(None), str), "Input should be a valid string"),
}
SAMPLING = {
    "temperature": 1.0,
    "top_p": None,
    "top_k": None,
}  # the values newer models still pass on 2023-06-01
NO_FORCED_TOOL = frozenset({"claude-opus-5-5", "claude-sonnet-5-5", "claude-fable-5-1", "claude-fable-5-2"})
FAST = frozenset({"claude-fable-5-2", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8"})
PREFILL_UNTIL = (4, 5)  # Claude 4.6 and later refuse an assistant message at the end
GEO_FROM = (4, 6)
SYSTEM_TURNS_FROM = (4, 8)
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
FEW_THINKING_TOKENS = 1024
MAX_BREAKPOINTS = 4
GENERATION = re.compile(r"-(\d+)(?:-(\d{1,2}))?(?:-|$)")


class Problem(NamedTuple):
    """Why a request is refused."""

    status: int
    type: str
    message: str
    details: dict[str, Any] | None = None


class Call(NamedTuple):
    """What decides how strictly a request is read."""

    model: catalog.Model
    version: str
    betas: str

    def has(self, name: str) -> bool:
        """Whether the beta header that `name` needs was sent."""
        begins = BETAS.get(name)
        return begins is not None and any(each.strip().startswith(begins) for each in self.betas.split(","))


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
    body: Mapping[str, Any],
    model: catalog.Model,
    version: str = "2026-10-21",
    *,
    betas: str = "",
    counting: bool = False,
) -> Problem | None:
    """Return the first thing the API would refuse in a request, or None.

    Parameters
    ----------
    betas : str
        The ``anthropic-beta`` header.
    counting : bool
        The request asks for a token count: no `max_tokens`, fewer fields.
    """
    for found in _found(body, Call(model, version, betas), counting=counting):
        return found if isinstance(found, Problem) else invalid(found)
    return None


def _found(body: Mapping[str, Any], call: Call, *, counting: bool) -> Iterator[str | Problem]:
    model = call.model
    sampling = SAMPLING if call.version == OLD_VERSION else ()
    allowed = {*(COUNTED if counting else FIELDS), *sampling, *filter(call.has, BETAS)}
    yield from _extra("", body, allowed)
    if call.version == OLD_VERSION:
        yield from _sampling(body, model)
    if not counting:
        yield from _max_tokens(body, model)
    yield from _conversation(body, call)
    yield from _system(body)
    yield from _tools(body, call)
    yield from _cache(body)
    yield from _output(body, call)
    yield from _thinking(body, call)
    yield from _options(body, call)


def _extra(where: str, value: Iterable[str], allowed: Iterable[str]) -> Iterator[str]:
    yield from (f"{where}{name}: Extra inputs are not permitted" for name in value if name not in allowed)


def _tag(where: str, kind: Any, tags: Iterable[str], call: Call) -> Iterator[str]:
    """Yield that a type is not known; with a beta header it may be one of those, which are not known here."""
    if kind not in [*tags] and not call.betas:
        expected = ", ".join(map(repr, tags))
        tag = f"Input tag {kind!r} found using 'type' does not match any of the expected tags: {expected}"
        yield f"{where}: {tag}"


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
    elif value == 0:
        config, choice = body.get("output_config"), body.get("tool_choice")
        if body.get("stream"):
            yield "max_tokens: 0 is not supported with `stream`"
        if isinstance(config, dict) and config.get("format"):
            yield "max_tokens: 0 is not supported with `output_config.format`"
        if isinstance(choice, dict) and choice.get("type") in ("any", "tool"):
            yield f"max_tokens: 0 is not supported with `tool_choice.type` {choice['type']!r}"


def _conversation(body: Mapping[str, Any], call: Call) -> Iterator[str | Problem]:
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
        yield from _turn(index, message, call)
    if messages[0]["role"] != "user":
        yield 'messages: first message must use the "user" role'
    if messages[-1]["role"] == "assistant":
        yield from _prefill(messages[-1]["content"], call)


def _prefill(last: str | list[dict[str, Any]], call: Call) -> Iterator[str]:
    blocks = [{"type": "text", "text": last}] if isinstance(last, str) else last
    # A turn that the API itself paused, with its own tools in it, may be sent back as it came.
    paused = any(each["type"] == "server_tool_use" for each in blocks)
    if generation(call.model.id) > PREFILL_UNTIL and not paused:
        yield (
            "This model does not support assistant message prefill. "
            "The conversation must end with a user message."
        )
    text = blocks[-1].get("text", "") if blocks else ""
    if text != text.rstrip():
        yield "messages: final assistant content cannot end with trailing whitespace"


def _turn(index: int, message: Any, call: Call) -> Iterator[str | Problem]:
    where = f"messages.{index}"
    if not isinstance(message, dict):
        yield f"{where}: Input should be a valid dictionary"
        return
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        yield f"{where}.role: Input should be 'user', 'assistant' or 'system'"
    if role == "system" and generation(call.model.id) < SYSTEM_TURNS_FROM:
        yield f"{where}: role 'system' is not supported on this model"
    yield from _extra(f"{where}.", message, ("role", "content"))
    if content is None:
        yield f"{where}.content: Field required"
    elif not isinstance(content, (str, list)):
        yield f"{where}.content: Input should be a valid string"
    elif not content or (isinstance(content, str) and not content.strip() and role != "assistant"):
        yield f"{where}: {role} messages must have non-empty content"
    elif isinstance(content, list):
        yield from _blocks(f"{where}.content", role, content, call)


def _blocks(where: str, role: Any, blocks: list[Any], call: Call, *inner: str) -> Iterator[str | Problem]:
    """Yield what is wrong with the blocks of a turn, or of a block, where they may be `inner` as well."""
    for place, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        at = f"{where}.{place}"
        if not isinstance(kind, str):
            yield f"{at}.type: Field required"
            continue
        yield from _tag(at, kind, [*BLOCKS, *inner], call)
        only = TURNS.get(kind, role)
        if only != role and not (kind == "document" and call.version == OLD_VERSION):
            yield f"{at}: `{kind}` blocks can only be in `{only}` messages"
        yield from _extra(f"{at}.{kind}.", block, ("type", *(BLOCKS.get(kind) or block)))
        yield from _block(f"{at}.{kind}", role, block, call)


def _block(where: str, role: Any, block: dict[str, Any], call: Call) -> Iterator[str | Problem]:
    kind, content = block["type"], block.get("content")
    if kind == "text" and not isinstance(block.get("text"), str):
        yield f"{where}.text: Field required"
    elif kind == "text" and not block["text"].strip():
        yield "messages: text content blocks must be non-empty"
    elif kind == "text" and role == "user" and block.get("citations") and call.version != OLD_VERSION:
        yield f"{where}.citations: Extra inputs are not permitted"
    elif kind in ("image", "document"):
        yield from _source(f"{where}.source", kind, block.get("source"), call)
    elif kind in ("search_result", "tool_result") and isinstance(content, list):
        yield from _blocks(f"{where}.content", "user", content, call, "tool_reference")


def _source(where: str, kind: str, source: Any, call: Call) -> Iterator[str | Problem]:
    of = source.get("type") if isinstance(source, dict) else None
    yield from _tag(where, of, list(SOURCES)[: 3 if kind == "image" else None], call)
    names = SOURCES.get(of, ()) if isinstance(of, str) else ()
    yield from (f"{where}.{of}.{name}: Field required" for name in names if source.get(name) is None)
    yield from _extra(f"{where}.{of}.", source if names else (), ("type", *names))
    if of != "base64":
        return
    kinds = [name for name in MEDIA if name.startswith("image/") == (kind == "image")]
    if source["media_type"] not in kinds:
        yield f"{where}.base64.media_type: Input should be {' or '.join(map(repr, kinds))}"
    try:
        data = base64.b64decode(str(source["data"]), validate=True)
    except ValueError:
        yield f"{where}.base64: invalid base64 data"
        return
    real = next((name for name, begins in MEDIA.items() if data.startswith(begins)), None)
    if real not in kinds:
        yield "Could not process image" if kind == "image" else f"{where}.base64.data: The PDF was not valid."
    elif real != source["media_type"]:
        asked = f"The image was specified using the {source['media_type']} media type"
        yield f"{where}.base64: {asked}, but the image appears to be a {real} image"
    elif real == "image/png" and max(int.from_bytes(data[at : at + 4]) for at in (16, 20)) > MOST_PIXELS:
        path = where.removesuffix(".image.source")
        details = {"error_code": "image_dimensions_too_large", "max_side_length_pixels": MOST_PIXELS}
        message = f"{where}.base64: image dimensions exceed the maximum of {MOST_PIXELS} pixels"
        yield Problem(400, "invalid_request_error", message, {**details, "paths": [path]})


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
        yield from _extra(f"system.{index}.", block, ("type", *(BLOCKS["text"] or ())))


def _cache(body: Mapping[str, Any]) -> Iterator[str]:
    controls = [tool.get("cache_control") for tool in body.get("tools") or () if isinstance(tool, dict)]
    lists = [body.get("system"), *(message["content"] for message in body["messages"])]
    for blocks in lists:
        if isinstance(blocks, list):
            controls.extend(block.get("cache_control") for block in blocks)
    marks = [control for control in [*controls, body.get("cache_control")] if control is not None]
    ttls = []
    for mark in marks:
        if not isinstance(mark, dict) or mark.get("type") != "ephemeral" or not set(mark) <= {"type", "ttl"}:
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


def _output(body: Mapping[str, Any], call: Call) -> Iterator[str]:
    model, config = call.model, body.get("output_config")
    if config is None:
        return
    if not isinstance(config, dict):
        yield "output_config: Input should be a valid dictionary"
        return
    yield from _extra("output_config.", config, ("effort", "format", *["task_budget"] * bool(call.betas)))
    effort = config.get("effort")
    if effort is not None and not model.efforts:
        yield "This model does not support the effort parameter."
    elif effort is not None and effort not in model.efforts:
        yield f"output_config.effort: Input should be one of {', '.join(map(repr, model.efforts))}"
    if config.get("format") is not None:
        yield from _format(config["format"], model)
        if body["messages"][-1]["role"] == "assistant":
            yield "output_config.format: assistant message prefill cannot be used with structured outputs"
        lists = (message["content"] for message in body["messages"] if isinstance(message["content"], list))
        cited = (block.get("citations") for blocks in lists for block in blocks if block["type"] != "text")
        if any(isinstance(each, dict) and each.get("enabled") for each in cited):
            yield "output_config.format: citations cannot be enabled together with structured outputs"


def _format(wanted: Any, model: catalog.Model) -> Iterator[str]:
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        yield "output_config.format.type: Input should be 'json_schema'"
    elif not isinstance(wanted.get("schema"), dict):
        yield "output_config.format.schema: Field required"
    elif not model.structured_outputs:
        yield "output_config.format: structured outputs are not supported on this model"
    elif found := schema_problem(wanted["schema"]):
        yield f"output_config.format.schema: {found}"


def _thinking(body: Mapping[str, Any], call: Call) -> Iterator[str]:
    model, asked = call.model, body.get("thinking")
    if asked is None:
        return
    kind = asked.get("type") if isinstance(asked, dict) else None
    if not isinstance(kind, str) or kind not in THINKING:
        yield "thinking.type: Input should be 'adaptive', 'between_tools', 'disabled' or 'enabled'"
        return
    if not call.betas:
        yield from _extra(f"thinking.{kind}.", asked, ("type", *THINKING[kind]))
        if asked.get("display") not in (None, "summarized", "omitted"):
            yield f"thinking.{kind}.display: Input should be 'summarized' or 'omitted'"
    if kind not in model.thinking_types:
        yield (
            f'"thinking.type.{kind}" is not supported for this model. '
            f"Supported: {', '.join(model.thinking_types) or 'none'}."
        )
    if kind == "enabled":
        yield from _manual_thinking(asked, body)
    bound = model.thinking_off_up_to_effort
    effort = (body.get("output_config") or {}).get("effort")
    if kind in ("disabled", "between_tools") and bound and effort in model.efforts:
        order = model.efforts
        if order.index(effort) > order.index(bound):
            yield f'"thinking.type.{kind}" is not supported at effort {effort!r}: use {bound!r} or lower'


def _manual_thinking(asked: dict[str, Any], body: Mapping[str, Any]) -> Iterator[str]:
    budget, limit = asked.get("budget_tokens"), body.get("max_tokens")
    if not isinstance(budget, int) or budget < FEW_THINKING_TOKENS:
        yield f"thinking.budget_tokens: Input should be greater than or equal to {FEW_THINKING_TOKENS}"
    elif isinstance(limit, int) and budget >= limit:
        yield "`max_tokens` must be greater than `thinking.budget_tokens`."
    if (body.get("tool_choice") or {}).get("type") in ("any", "tool"):
        yield "Thinking may not be enabled when tool_choice forces tool use."


def _tools(body: Mapping[str, Any], call: Call) -> Iterator[str]:
    tools = body.get("tools")
    if tools is not None:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            yield "tools: Input should be a valid list"
            return
        for index, tool in enumerate(tools):
            yield from _tool(f"tools.{index}", tool, call)
        names = [tool["name"] for tool in tools if "name" in tool]
        if len(names) > len(set(names)):
            yield "tools: Tool names must be unique."
    if body.get("tool_choice") is not None:
        yield from _choice(body["tool_choice"], tools, call.model)


def _tool(where: str, tool: dict[str, Any], call: Call) -> Iterator[str]:
    kind, name, most = tool.get("type") or "custom", tool.get("name"), tool.get("max_uses")
    if kind != "custom":
        yield from _tag(where, kind, ["custom", *TOOLS], call)
        wanted = TOOLS.get(kind) if isinstance(kind, str) else None
        if name != wanted and (wanted or not isinstance(name, (str, type(None)))):
            yield f"{where}.{kind}.name: Input should be {wanted!r}"
        if "input_schema" in tool:
            yield f"{where}.{kind}.input_schema: Extra inputs are not permitted"
        if most is not None and (not isinstance(most, int) or most < 1):
            yield f"{where}.{kind}.max_uses: Input should be greater than 0"
    elif not isinstance(name, str):
        yield f"{where}.custom.name: Field required"
    elif not TOOL_NAME.fullmatch(name):
        yield f"{where}.custom.name: String should match pattern '^{TOOL_NAME.pattern}$'"
    elif "input_schema" not in tool:
        yield f"{where}.custom.input_schema: Field required"
    elif found := shape_problem(tool["input_schema"]):
        yield f"{where}.custom.input_schema: {found}"


def _choice(choice: Any, tools: Any, model: catalog.Model) -> Iterator[str]:
    kind = choice.get("type") if isinstance(choice, dict) else None
    if not isinstance(kind, str) or kind not in CHOICES:
        yield "tool_choice.type: Input should be 'any', 'auto', 'none' or 'tool'"
        return
    yield from _extra(f"tool_choice.{kind}.", choice, ("type", *CHOICES[kind]))
    if kind in ("any", "tool") and model.id in NO_FORCED_TOOL:
        yield f"tool_choice.type: {kind!r} is not supported on this model"
    elif kind in ("any", "tool") and not tools:
        yield "tool_choice: may only be specified while providing `tools`"
    elif kind == "tool" and choice.get("name") not in [tool.get("name") for tool in tools]:
        yield f"Tool {choice.get('name')!r} not found in provided tools"


def _options(body: Mapping[str, Any], call: Call) -> Iterator[str]:
    for path, (values, words) in OPTIONS.items():
        field, _, name = path.partition(".")
        within = (body.get(field) or {}) if name else body
        yield from _extra(f"{field}.", within if name else (), (name,))
        for value in (within[each] for each in (name or field,) if each in within):
            if not (isinstance(value, values) if isinstance(values[0], type) else value in values):
                yield f"{path}: {words}"
    speed = body.get("speed")
    if speed is not None and call.model.id in BETAS and not call.has(call.model.id):
        yield "speed: Extra inputs are not permitted"
    elif speed == "fast" and call.model.id not in FAST:
        yield "speed: fast mode is not supported on this model"
    if body.get("inference_geo") is not None and generation(call.model.id) < GEO_FROM:
        yield "inference_geo: not supported on this model"
    stops = body.get("stop_sequences")
    if stops is not None and not (isinstance(stops, list) and all(isinstance(each, str) for each in stops)):
        yield "stop_sequences: Input should be a valid list"
    elif stops and not all(each.strip() for each in stops):
        yield "stop_sequences: each stop sequence must contain non-whitespace"


def generation(model_id: str) -> tuple[int, int]:
    """Return the generation of a model by its id: (4, 5) for ``claude-haiku-4-5``."""
    found = GENERATION.search(model_id)
    return (int(found.group(1)), int(found.group(2) or 0)) if found else (0, 0)
