"""What the API refuses with a 400 or 404, and in which words.

First the shape of a request is held against the table `FIELDS`, then its sense is looked into. The messages
follow the API's where they are known; their exact wording is promised by nobody.
"""

from __future__ import annotations

import base64
import json
import math
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from claudescale.api import catalog
from claudescale.errors import UnknownModel
from claudescale.simulator.wire import Problem, invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

OLD_VERSION = "2023-06-01"
VERSIONS = frozenset({OLD_VERSION, "2026-10-21"})
GENERATION = re.compile(r"-(\d+)(?:-(\d{1,2}))?(?:-|$)")
PREFILL_UNTIL = (4, 5)  # Claude 4.6 and later refuse an assistant message at the end
SYSTEM_TURNS_FROM = (4, 8)
FAST = frozenset({"claude-fable-5-2", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8"})
SAMPLING = {"temperature": 1.0, "top_p": None, "top_k": None}  # what newer models still pass on 2023-06-01
FEW_THINKING_TOKENS = 1024
MAX_BREAKPOINTS = 4
MOST_PIXELS = 8_000
MEDIA = {  # how the bytes of each type begin
    "image/jpeg": b"\xff\xd8\xff",
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
    "application/pdf": b"%PDF-",
}
ROLES = {  # the only role whose turns may hold a block
    **dict.fromkeys(("image", "document", "tool_result"), "user"),
    **dict.fromkeys(("thinking", "redacted_thinking", "tool_use"), "assistant"),
}
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
SERVED_TOOL = re.compile(  # the API's own, and the name it must have; None where it has none
    r"(web_search|web_fetch|code_execution|bash|memory)_\d{8}|(tool_search_tool_(?:bm25|regex))(?:_\d{8})?"
    r"|text_editor_\d{8}|(?:browser|computer)_toolset_\d{8}"
)


def generation(model_id: str) -> tuple[int, int]:
    """Return the generation of a model by its id: (4, 5) for ``claude-haiku-4-5``."""
    found = GENERATION.search(model_id)
    return (int(found.group(1)), int(found.group(2) or 0)) if found else (0, 0)


def version_problem(headers: Mapping[str, str]) -> Problem | None:
    """Return what is wrong with the ``anthropic-version`` header."""
    version = headers.get("anthropic-version")
    if version is None:
        return invalid("anthropic-version: header is required")
    return None if version in VERSIONS else invalid(f"anthropic-version: {version!r} is not a valid version")


def found_model(body: Mapping[str, Any], now: float) -> catalog.Model | Problem:
    """Return the model a request names."""
    name = body.get("model")
    if not isinstance(name, str):
        return invalid(f"model: {'Field required' if name is None else 'Input should be a valid string'}")
    try:
        found = catalog.callable_model(name, datetime.fromtimestamp(now, UTC))
    except UnknownModel:
        found = None
    if found is None or found.verified_only:
        return Problem(404, "not_found_error", f"model: {name}")
    return found


def problem(
    body: dict[str, Any],
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
    call = Call(body, model, betas, old=version == OLD_VERSION, counting=counting)
    fields = {**(COUNTED if counting else FIELDS), **dict.fromkeys(filter(call.has, BETAS))}
    fields |= dict.fromkeys(SAMPLING) if call.old else {}
    known = {name.removesuffix("!") for name in fields}
    for name in body.keys() - known:
        return invalid(f"{name}: Extra inputs are not permitted")
    for found in _fields("", body, fields, loose=bool(betas)):
        return invalid(found)
    for wrong in call.problems():
        return wrong if isinstance(wrong, Problem) else invalid(wrong)
    return None


# ------------------------------------------------------------------------------------------------- shapes


class Choice(dict[str, Any]):
    """Objects that are told apart by their ``type``: the fields of each besides it."""


class Tagged(Choice):
    """The same, of so many types that the API lists them as tags."""


# A type; [what a list holds]; (values); (what may stand there, the first of which the message names); or fields by
# name, "!" where one is required and ... where more may follow. None is not looked into.
_TEXT = {"text!": str, "cache_control": None, "citations": None}
_BYTES, _CITED = {"media_type!": None, "data!": None}, ("cache_control", "citations", "context", "title")
_IMAGES = Tagged(base64=_BYTES, url={"url!": None}, file={"file_id!": None})
_DOCUMENTS = Tagged(_IMAGES, text=_BYTES, content={"content!": None})
_RESULTS = ("web_search", "web_fetch", "code_execution", "bash_code_execution", "text_editor_code_execution")
_INSIDE = Tagged()  # what the result of a search or of a tool may hold
BLOCKS = Tagged(
    text=_TEXT,
    image={"source!": _IMAGES, "cache_control": None, "transformations": None},
    document={"source!": _DOCUMENTS, **dict.fromkeys(_CITED)},
    search_result={"content": [_INSIDE], ...: None},
    **dict.fromkeys(("thinking", "redacted_thinking", "tool_use")),
    tool_result={"content": (str, [_INSIDE]), ...: None},
    **dict.fromkeys(("server_tool_use", *(f"{name}_tool_result" for name in (*_RESULTS, "tool_search")))),
    container_upload=None,
)
_INSIDE.update(BLOCKS, tool_reference=None)
_THINKING, _PARALLEL = {"display": ("summarized", "omitted")}, {"disable_parallel_tool_use": None}
COUNTED: dict[str, Any] = {  # what the token counter takes too
    "model!": str,
    "messages!": [{"role!": ("user", "assistant", "system"), "content!": (str, [BLOCKS])}],
    "system": ([Choice(text=_TEXT)], str),
    "cache_control": None,
    "output_config": {"effort": None, "format": {"type!": ("json_schema",), "schema!": dict, ...: None}},
    "speed": ("fast", "standard"),
    "thinking": Choice(
        adaptive=_THINKING, between_tools={}, disabled={}, enabled={"budget_tokens": None, **_THINKING}
    ),
    "tool_choice": Choice(any=_PARALLEL, auto=_PARALLEL, none={}, tool={"name": None, **_PARALLEL}),
    "tools": [dict],
    "user_profile_id": None,
}
FIELDS: dict[str, Any] = {
    **COUNTED,
    "max_tokens!": int,
    "diagnostics": {"previous_message_id": str},
    "inference_geo": catalog.CHARGES.geographies[::-1],
    "metadata": {"user_id": str},
    "service_tier": ("auto", "standard_only"),
    "stop_sequences": list,
    "stream": bool,
    **dict.fromkeys(("container", "workspace_id")),
}
BETAS = {  # what is taken only with an anthropic-beta header that begins so
    "mcp_servers": ("mcp-client-",),
    "context_management": ("context-management-", "compact-"),
    "fallbacks": ("server-side-fallback-",),
    "fallback_credit_token": ("fallback-credit-",),
    "thread": ("message-threads-",),
    "compaction": ("compact-",),
    "billing_policy": ("user-profiles-",),
    **dict.fromkeys(("claude-opus-5", "claude-opus-4-8"), ("fast-mode-",)),  # their `speed`
}
WORDS = {str: "string", int: "integer", bool: "boolean", dict: "dictionary", list: "list"}


def _shape(where: str, value: Any, spec: Any, *, loose: bool) -> Iterator[str]:
    """Yield where a value is not of the shape `spec`; `loose` lets pass what is not known."""
    if isinstance(spec, tuple) and isinstance(spec[0], (type, list)):
        fitting = (one for one in spec if isinstance(value, list if isinstance(one, list) else one))
        spec = next(fitting, spec[0])
    kind: Any = list if isinstance(spec, list) else spec
    if isinstance(kind, type):
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            yield f"{where}: Input should be a valid {WORDS[kind]}"
        elif isinstance(spec, list):
            for place, item in enumerate([*value]):
                yield from _shape(f"{where}.{place}", item, spec[0], loose=loose)
    elif isinstance(spec, tuple) and value not in spec:
        yield f"{where}: Input should be {_either(spec)}"
    elif isinstance(spec, Choice):
        yield from _chosen(where, value, spec, loose=loose)
    elif isinstance(spec, dict):
        yield from _fields(where, value, spec, loose=loose)


def _chosen(where: str, value: Any, spec: Choice, *, loose: bool) -> Iterator[str]:
    kind = value.get("type") if isinstance(value, dict) else None
    tagged = isinstance(spec, Tagged)
    if not isinstance(kind, str):
        yield f"{where}.type: {'Field required' if tagged else f'Input should be {_either(spec)}'}"
    elif kind in spec:
        rest = {name: part for name, part in value.items() if name != "type"}
        yield from _fields(f"{where}.{kind}", rest, spec[kind], loose=loose)
    elif not loose and tagged:
        tag = f"Input tag {kind!r} found using 'type' does not match any of the expected tags"
        yield f"{where}: {tag}: {', '.join(map(repr, spec))}"
    elif not loose:
        yield f"{where}.type: Input should be {_either(spec)}"


def _fields(where: str, value: Any, spec: Any, *, loose: bool) -> Iterator[str]:
    if spec is None:
        return
    if not isinstance(value, dict):
        yield f"{where}: Input should be a valid dictionary"
        return
    at = f"{where}." if where else ""
    keys = {str(key).removesuffix("!"): key for key in spec}
    if not loose and ... not in spec:
        yield from (f"{at}{name}: Extra inputs are not permitted" for name in value if name not in keys)
    for name, key in keys.items():
        if value.get(name) is not None:
            yield from _shape(f"{at}{name}", value[name], spec[key], loose=loose)
        elif key != name and key is not ...:
            yield f"{at}{name}: Field required"


def _either(values: Iterable[str]) -> str:
    *most, last = map(repr, values)
    return f"{', '.join(most)} or {last}" if most else last


# -------------------------------------------------------------------------------------------------- sense


class Call:
    """A request, and what decides how strictly it is read; but for `has` only one of the right shape."""

    def __init__(
        self, body: dict[str, Any], model: catalog.Model, betas: str, *, old: bool, counting: bool
    ) -> None:
        self.body, self.model, self.betas, self.old, self.counting = body, model, betas, old, counting

    def has(self, name: str) -> bool:
        """Return whether the beta header that `name` needs was sent."""
        return any(beta.strip().startswith(BETAS[name]) for beta in self.betas.split(","))

    def problems(self) -> Iterator[str | Problem]:
        """Yield everything that is wrong with a request of the right shape."""
        self.turns: list[dict[str, Any]] = self.body["messages"]
        self.config: dict[str, Any] = self.body.get("output_config") or {}
        self.tools: list[dict[str, Any]] = self.body.get("tools") or []
        self.choice: dict[str, Any] = self.body.get("tool_choice") or {}
        self.forced = self.choice["type"] if self.choice.get("type") in ("any", "tool") else None
        if self.old:
            yield from self._sampling()
        if not self.counting:
            yield from self._max_tokens()
        yield from self._conversation()
        yield from self._tool_problems()
        yield from self._cache()
        yield from self._output()
        yield from self._thinking()
        yield from self._options()

    def _sampling(self) -> Iterator[str]:
        for name, default in SAMPLING.items():
            if self.body.get(name, default) != default and self.model.tokenizer == "2026":
                yield f"{name}: `{name}` may only be set to its default on {self.model.id}"

    def _max_tokens(self) -> Iterator[str]:
        value, most = self.body["max_tokens"], self.model.max_output_tokens
        if value < 0:
            yield "max_tokens: Input should be greater than or equal to 0"
        if value > most:
            which = f"which is the maximum allowed number of output tokens for {self.model.snapshot}"
            yield f"max_tokens: {value} > {most}, {which}"
        if value == 0 and self.body.get("stream"):
            yield "max_tokens: 0 is not supported with `stream`"
        if value == 0 and self.config.get("format"):
            yield "max_tokens: 0 is not supported with `output_config.format`"
        if value == 0 and self.forced:
            yield f"max_tokens: 0 is not supported with `tool_choice.type` {self.forced!r}"

    def _conversation(self) -> Iterator[str | Problem]:
        if not self.turns:
            yield "messages: at least one message is required"
            return
        if len(self.turns) > catalog.MESSAGE.max_messages:
            yield f"messages: at most {catalog.MESSAGE.max_messages} messages are allowed"
        for place, turn in enumerate(self.turns):
            where, role, content = f"messages.{place}", turn["role"], turn["content"]
            if role == "system" and generation(self.model.id) < SYSTEM_TURNS_FROM:
                yield f"{where}: role 'system' is not supported on this model"
            if not content or (isinstance(content, str) and not content.strip() and role != "assistant"):
                yield f"{where}: {role} messages must have non-empty content"
            for at, whose, block in _blocks(f"{where}.content", role, content):
                yield from self._block(at, whose, block)
        if self.turns[0]["role"] != "user":
            yield 'messages: first message must use the "user" role'
        if self.turns[-1]["role"] == "assistant":
            yield from self._prefill(self.turns[-1]["content"])

    def _block(self, where: str, role: str, block: dict[str, Any]) -> Iterator[str | Problem]:
        kind = block["type"]
        only = role if kind == "document" and self.old else ROLES.get(kind, role)
        if only != role:
            yield f"{where}: `{kind}` blocks can only be in `{only}` messages"
        if kind == "text" and not block["text"].strip():
            yield "messages: text content blocks must be non-empty"
        if kind == "text" and role == "user" and block.get("citations") and not self.old:
            yield f"{where}.text.citations: Extra inputs are not permitted"
        if kind in ("image", "document") and block["source"]["type"] == "base64":
            yield from _media(f"{where}.{kind}.source.base64", kind, block["source"])

    def _prefill(self, content: str | list[dict[str, Any]]) -> Iterator[str]:
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        # A turn that the API itself paused, with its own tools in it, may be sent back as it came.
        paused = any(block["type"] == "server_tool_use" for block in blocks)
        if generation(self.model.id) > PREFILL_UNTIL and not paused:
            yield (
                "This model does not support assistant message prefill. "
                "The conversation must end with a user message."
            )
        if str(blocks[-1].get("text", ""))[-1:].isspace():
            yield "messages: final assistant content cannot end with trailing whitespace"
        if self.config.get("format"):
            yield "output_config.format: assistant message prefill cannot be used with structured outputs"

    def _tool_problems(self) -> Iterator[str]:
        for place, tool in enumerate(self.tools):
            yield from self._tool(f"tools.{place}", tool)
        names = [tool["name"] for tool in self.tools if tool.get("name")]
        if len(names) > len(set(names)):
            yield "tools: Tool names must be unique."
        if self.forced and self.model.id in catalog.CHARGES.no_forced_tool:
            yield f"tool_choice.type: {self.forced!r} is not supported on this model"
        elif self.forced and not self.tools:
            yield "tool_choice: may only be specified while providing `tools`"
        elif self.forced == "tool" and self.choice.get("name") not in names:
            yield f"Tool {self.choice.get('name')!r} not found in provided tools"

    def _tool(self, where: str, tool: dict[str, Any]) -> Iterator[str]:
        kind, name = tool.get("type") or "custom", tool.get("name")
        served = SERVED_TOOL.fullmatch(str(kind))
        if kind == "custom" or isinstance(name, (dict, list)):
            at = f"{where}.custom"
            if not isinstance(name, str):
                yield f"{at}.name: Field required"
            elif not TOOL_NAME.fullmatch(name):
                yield f"{at}.name: String should match pattern '^{TOOL_NAME.pattern}$'"
            elif "input_schema" not in tool:
                yield f"{at}.input_schema: Field required"
            elif found := Schema(tool["input_schema"], strict=False).problem():
                yield f"{at}.input_schema: {found}"
        elif served is None and not self.betas:
            yield f"{where}: Input tag {kind!r} found using 'type' does not match any of the expected tags"
        elif served and name not in served.groups() and "toolset" not in str(kind):
            wanted = served.group(1) or served.group(2) or "str_replace_based_edit_tool"
            if name != wanted:
                yield f"{where}.{kind}.name: Input should be {wanted!r}"
        elif "input_schema" in tool:
            yield f"{where}.{kind}.input_schema: Extra inputs are not permitted"
        elif tool.get("max_uses") is not None and not _at_least(tool["max_uses"], 1):
            yield f"{where}.{kind}.max_uses: Input should be greater than 0"

    def _cache(self) -> Iterator[str]:
        lists = [self.tools, self.body.get("system"), *(turn["content"] for turn in self.turns)]
        blocks = (block for blocks in lists if isinstance(blocks, list) for block in blocks)
        found = [*(block.get("cache_control") for block in blocks), self.body.get("cache_control")]
        marks = [mark for mark in found if mark is not None]
        lives = [mark.get("ttl", "5m") if isinstance(mark, dict) else "5m" for mark in marks]
        for mark, life in zip(marks, lives, strict=True):
            if (
                not isinstance(mark, dict)
                or mark.get("type") != "ephemeral"
                or not mark.keys() <= {"type", "ttl"}
            ):
                yield "cache_control.type: Input should be 'ephemeral'"
            elif life not in ("5m", "1h"):
                yield "cache_control.ephemeral.ttl: Input should be '5m' or '1h'"
        if len(marks) > MAX_BREAKPOINTS:
            yield f"A maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided. Found {len(marks)}."
        if "1h" in lives[lives.index("5m") if "5m" in lives else len(lives) :]:
            yield "cache_control: a ttl='1h' block must not come after a ttl='5m' block"

    def _output(self) -> Iterator[str]:
        effort, efforts, wanted = self.config.get("effort"), self.model.efforts, self.config.get("format")
        if effort is not None and not efforts:
            yield "This model does not support the effort parameter."
        elif effort is not None and effort not in efforts:
            yield f"output_config.effort: Input should be one of {', '.join(map(repr, efforts))}"
        if wanted and not self.model.structured_outputs:
            yield "output_config.format: structured outputs are not supported on this model"
        elif wanted and (found := schema_problem(json.dumps(wanted["schema"]))):
            yield f"output_config.format.schema: {found}"
        lists = (turn["content"] for turn in self.turns if wanted and isinstance(turn["content"], list))
        cited = (block.get("citations") for blocks in lists for block in blocks if block["type"] != "text")
        if any(isinstance(one, dict) and one.get("enabled") for one in cited):
            yield "output_config.format: citations cannot be enabled together with structured outputs"

    def _thinking(self) -> Iterator[str]:
        asked, model = self.body.get("thinking") or {}, self.model
        kind, budget, bound = asked.get("type"), asked.get("budget_tokens"), model.thinking_off_up_to_effort
        if kind and kind not in model.thinking_types:
            may = ", ".join(model.thinking_types) or "none"
            yield f'"thinking.type.{kind}" is not supported for this model. Supported: {may}.'
        if kind == "enabled" and not _at_least(budget, FEW_THINKING_TOKENS):
            yield f"thinking.budget_tokens: Input should be greater than or equal to {FEW_THINKING_TOKENS}"
        elif kind == "enabled" and budget >= self.body.get("max_tokens", math.inf):
            yield "`max_tokens` must be greater than `thinking.budget_tokens`."
        if kind == "enabled" and self.forced:
            yield "Thinking may not be enabled when tool_choice forces tool use."
        effort, order = self.config.get("effort"), model.efforts
        if kind in ("disabled", "between_tools") and bound and effort in order[order.index(bound) + 1 :]:
            yield f'"thinking.type.{kind}" is not supported at effort {effort!r}: use {bound!r} or lower'

    def _options(self) -> Iterator[str]:
        speed, stops = self.body.get("speed"), self.body.get("stop_sequences") or ()
        if speed is not None and self.model.id in BETAS and not self.has(self.model.id):
            yield "speed: Extra inputs are not permitted"
        elif speed == "fast" and self.model.id not in FAST:
            yield "speed: fast mode is not supported on this model"
        if self.body.get("inference_geo") and self.model.id in catalog.CHARGES.no_inference_geo:
            yield "inference_geo: not supported on this model"
        if not all(isinstance(stop, str) for stop in stops):
            yield "stop_sequences: Input should be a valid list"
        elif not all(stop.strip() for stop in stops):
            yield "stop_sequences: each stop sequence must contain non-whitespace"
        if "stream" in self.body and self.body["stream"] is None:
            yield "stream: Input should be a valid boolean"


def _blocks(where: str, role: str, content: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (where, whose turn, block) for each block of a turn, those within others too."""
    for place, block in enumerate(content if isinstance(content, list) else ()):
        yield f"{where}.{place}", role, block
        if block["type"] in ("search_result", "tool_result"):
            yield from _blocks(f"{where}.{place}.{block['type']}.content", "user", block.get("content"))


def _media(where: str, kind: str, source: dict[str, Any]) -> Iterator[str | Problem]:
    """Yield what is wrong with an image or a PDF, by the first of its bytes."""
    asked, kinds = (
        source["media_type"],
        [name for name in MEDIA if name.startswith("image/") == (kind == "image")],
    )
    if asked not in kinds:
        yield f"{where}.media_type: Input should be {' or '.join(map(repr, kinds))}"
    try:
        data = base64.b64decode(str(source["data"]), validate=True)
    except ValueError:
        yield f"{where}: invalid base64 data"
        return
    real = next((name for name, begins in MEDIA.items() if data.startswith(begins)), None)
    if real not in kinds:
        yield "Could not process image" if kind == "image" else f"{where}.data: The PDF was not valid."
    elif real != asked:
        said = f"The image was specified using the {asked} media type"
        yield f"{where}: {said}, but the image appears to be a {real} image"
    elif real == "image/png" and max(int.from_bytes(data[at : at + 4]) for at in (16, 20)) > MOST_PIXELS:
        path = where.removesuffix(".image.source.base64")
        details = {"error_code": "image_dimensions_too_large", "max_side_length_pixels": MOST_PIXELS}
        message = f"{where}: image dimensions exceed the maximum of {MOST_PIXELS} pixels"
        yield Problem(400, "invalid_request_error", message, {**details, "paths": [path]})


def _at_least(value: Any, least: int) -> bool:
    return isinstance(value, int) and value >= least


# ------------------------------------------------------------------------------------------------ schemas
# Source: platform.claude.com, Structured outputs, "JSON Schema limitations" (checked 2026-08-22).

REFUSED_WORDS = frozenset(
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength maxItems uniqueItems "
    "minProperties maxProperties patternProperties prefixItems contains if then else not".split()
)
FORMATS = frozenset("text date-time time date duration email hostname uri ipv4 ipv6 uuid".split())
DEFINED = ("$defs", "definitions")
TYPES = frozenset("object array string integer number boolean null".split())
KINDS: dict[str, type] = {
    **dict.fromkeys(("properties", "$defs", "definitions"), dict),
    **dict.fromkeys(("required", "enum", "anyOf", "oneOf", "allOf"), list),
    **dict.fromkeys(("$ref", "format"), str),
    "minItems": int,
}


@lru_cache(maxsize=256)
def schema_problem(text: str) -> str | None:
    """Return why the API refuses a schema for ``output_config.format``, or None if it takes it."""
    return Schema(json.loads(text), strict=True).problem()


def resolved(root: Any, reference: str) -> Any:
    """Return the part of a schema that a reference such as ``#/$defs/Topic`` means, or None."""
    found = root if reference.startswith("#") else None
    for part in filter(None, reference[1:].split("/")):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


class Schema:
    """One look through a JSON schema; `strict` is what structured outputs ask of it, beyond being one."""

    def __init__(self, root: Any, *, strict: bool) -> None:
        self._root, self._strict = root, strict
        self._optional = self._unions = 0

    def problem(self) -> str | None:
        """Return the first reason for refusal."""
        for found in self._walk(self._root, "", frozenset()):
            return found
        if self._optional > catalog.MESSAGE.schema_optional_parameters:
            return (
                f"Schemas contain too many optional parameters ({self._optional}), which would make grammar "
                f"compilation inefficient. Limit: {catalog.MESSAGE.schema_optional_parameters}"
            )
        if self._unions > catalog.MESSAGE.schema_union_parameters:
            return (
                f"Schemas contain too many parameters with union types ({self._unions} parameters with type "
                f"arrays or anyOf). Limit: {catalog.MESSAGE.schema_union_parameters}"
            )
        return None

    def _walk(self, schema: Any, where: str, path: frozenset[str]) -> Iterator[str]:
        """Yield what is wrong with a schema and those in it; `path` are the references that led here."""
        place = where or "(root)"
        if not isinstance(schema, dict):
            yield f"{place}: a schema must be an object"
            return
        if wrong := _no_schema(schema):
            yield f"{place}.{wrong}: not valid in a JSON schema"
            return
        inner = {f"{where}[]": schema["items"]} if "items" in schema else {}
        inner |= {f"{where}.{name}": part for name, part in schema.get("properties", {}).items()}
        for word in ("anyOf", "oneOf", "allOf"):
            inner |= {f"{where}({word} {n})": part for n, part in enumerate(schema.get(word, ()))}
        if self._strict:
            yield from self._refused(schema, place)
            if "$ref" in schema:
                inner = {where: resolved(self._root, schema["$ref"])}
                if schema["$ref"] == "#" or schema["$ref"] in path:
                    yield "Recursive schemas are not supported"
                if inner[where] is None:
                    yield f"{place}: $ref {schema['$ref']!r} cannot be resolved"
                path |= {schema["$ref"]}
        else:
            inner |= {
                f"{where}/{name}": part for word in DEFINED for name, part in schema.get(word, {}).items()
            }
        for deeper, part in inner.items():
            yield from self._walk(part, deeper, path)

    def _refused(self, schema: dict[str, Any], place: str) -> Iterator[str]:
        """Yield what structured outputs refuse of one schema's own keywords, and count what they limit."""
        kinds, properties = schema.get("type"), schema.get("properties", {})
        for word in REFUSED_WORDS.intersection(schema):
            yield f"For '{kinds}' type, property '{word}' is not supported"
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if kind is not None and kind not in TYPES:
                yield f"{place}: type {kind!r} is not supported"
        if schema.get("minItems", 0) not in {0, 1}:
            yield "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
        if kinds == "string" and schema.get("format", "text") not in FORMATS:
            yield f"For 'string' type, format {schema['format']!r} is not supported"
        if (kinds == "object" or properties) and schema.get("additionalProperties") is not False:
            yield "For 'object' type, 'additionalProperties' must be explicitly set to false"
        self._unions += isinstance(kinds, list) or "anyOf" in schema or "oneOf" in schema
        self._optional += sum(name not in schema.get("required", ()) for name in properties)


def _no_schema(schema: dict[str, Any]) -> str | None:
    """Return the keyword whose value no JSON schema may have there."""
    for word, kind in KINDS.items():
        if word in schema and (
            not isinstance(schema[word], kind) or (word != "required" and schema[word] == [])
        ):
            return word
    kinds = schema.get("type", "any")
    texts = {
        "type": kinds if isinstance(kinds, list) and kinds else [kinds],
        "required": schema.get("required", []),
    }
    return next(
        (word for word, given in texts.items() if not all(isinstance(one, str) for one in given)), None
    )
