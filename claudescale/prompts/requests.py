"""From a frame to the requests of a run, and from its replies back to the rows, by Polars expressions alone.

A body is a constant head, the row's message as JSON, a constant tail. No Python runs per row except to
hash the keys.
"""

from __future__ import annotations

import hashlib
import json
import numbers
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TypeAlias, cast

import polars as pl

from claudescale.api import catalog
from claudescale.api.catalog import BATCH, CHARGES, MESSAGE
from claudescale.errors import NameTaken, PlanError, RequestTooLarge, UnknownColumn, nearest
from claudescale.prompts.replies import Returns, compile_returns
from claudescale.prompts.templates import Text, check_unicode, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from claudescale.api.catalog import Model
    from claudescale.running.runs import Run

Cache: TypeAlias = bool | Literal["5m", "1h"]
Frame: TypeAlias = pl.DataFrame | pl.LazyFrame

SLICE_ROWS = 4_000  # so many rows are rendered at once
NOT_SENT = "not_sent"  # the error of a row that has no answer yet
FRAMING_TOKENS = 10.0  # what a request has around its text: roles, turns
OUTPUT_COLUMNS = ("reply", "error", "simulated")
"""What the results add to the user's frame, besides the typed columns of ``returns=``; the last one only
where a simulator answered."""
SIZES = pl.Schema({"characters": pl.UInt32(), "requests": pl.UInt32(), "rows": pl.UInt32()})
"""Columns of `Prompt.sizes`: how many requests, answering how many rows, there are of each length; null
characters are rows that are not sent."""
REQUESTS = pl.Schema(
    {"row": pl.UInt32(), "key": pl.String(), "bytes": pl.Int64(), "estimated_tokens": pl.Float64()}
)
"""Columns of `Work.requests`: its first row in the frame, its key, the size of its body."""
FACTS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("parameters.toml").read_text("utf-8"))


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


# ------------------------------------------------------------------------- what is asked about every row


class Charges(NamedTuple):
    """What can make a request cost more than its tokens at the list price."""

    inference_geo: str | None = None  # where it is asked to be answered; None leaves it to the workspace
    searches: int | None = 0  # most web searches; None is without end
    turns: int = 1  # most turns of the model in one answer, each of which reads all before it
    caches: bool = False  # a tool is marked for the cache


NO_CHARGES = Charges()


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """What is asked about every row. `compile_prompt` makes it; it holds no frame."""

    head: str  # the constant JSON before a row's message: a body is head + message + tail
    tail: str = "]}"
    text: Text = field(repr=False)
    template: str | None = field(repr=False)  # the prompt; None of an expression
    returns: Returns | None  # what makes typed columns of the replies
    constant: Mapping[str, Any] = field(repr=False)  # the request without its messages, and without caching
    model: Model = field(repr=False)
    shared_characters: int  # of every request besides the row's text: system prompt, schema, tools
    notes: tuple[str, ...]  # what is worth knowing and no error
    charges: Charges

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns a template names; None of an expression, which cannot be rendered a slice at a time."""
        return self.text.columns

    @property
    def shared_tokens(self) -> float:
        """Estimated tokens that all requests share."""
        return self.shared_characters / self.model.characters_per_token

    @property
    def is_cacheable(self) -> bool:
        """Whether what all requests share is long enough for the prompt cache."""
        minimum = self.model.cache_minimum_tokens
        return minimum is not None and self.shared_tokens >= minimum

    def estimated_tokens(self, characters: pl.Expr) -> pl.Expr:
        """Return an expression of the input tokens of each request, all of its input, from its characters.

        Characters are those that the model reads, not those of the body, which has some escaped.
        """
        return (characters + self.shared_characters) / self.model.characters_per_token + FRAMING_TOKENS

    def contents(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the `characters` of each row's text and its message as JSON, null where it is not sent."""
        # The row number in the same select holds the height: an expression that drops or adds rows fails.
        text = frame.lazy().select(row=pl.int_range(pl.len(), dtype=pl.UInt32), content=self.text.content)
        message = pl.struct(pl.lit("user").alias("role"), "content").struct.json_encode()
        contents = text.select(
            "row",
            characters=pl.col("content").str.len_chars(),
            content=pl.when(pl.col("content").is_not_null()).then(message),
        )
        return contents.collect().drop("row")

    def bodies(self, contents: pl.Series) -> pl.Series:
        """Return the whole body of each message."""
        return (self.head + contents + self.tail).alias("body")

    def sizes(self, frame: Frame, only: pl.Series | None = None) -> pl.DataFrame:
        """Return `SIZES` of a frame, or of some of its rows: read as a stream, nothing rendered whole."""
        rows = frame.lazy().select(
            pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
            self.text.content.hash().alias("text"),
            self.text.characters.cast(pl.UInt32).alias("characters"),
        )
        if only is not None:
            rows = rows.join(only.alias("row").to_frame().lazy(), on="row", how="semi")
        return _sizes(rows.group_by("text", "characters").agg(rows=pl.len())).collect(engine="streaming")

    def keys(self, contents: pl.Series, api: str) -> pl.Series:
        """Return the key of each message, null for null: the same request to the same API, the same key.

        Whether the prompt is cached changes the price and not the answer, so it does not change the key.
        """
        # Polars' own hash is faster and changes between versions; a ledger must know its rows for ever.
        start = hashlib.blake2b(f"{api}\0{_head(self.constant)}".encode(), digest_size=16)
        copy: Callable[[], Any] = start.copy
        end = self.tail.encode()

        def key(text: bytes) -> str:
            state = copy()
            state.update(text + end)
            found: str = state.hexdigest()
            return found

        texts = contents.cast(pl.Binary).to_list()  # half the time of making strings and encoding them
        return pl.Series("key", [None if text is None else key(text) for text in texts], pl.String)

    def results_schema(self, frame: Frame) -> pl.Schema:
        """Return the columns that the results of a frame have."""
        typed = {} if self.returns is None else self.returns.columns
        return pl.Schema({**schema_of(frame), **typed, "reply": pl.String(), "error": pl.String(), **typed})

    def changed(self, other: Prompt) -> set[str]:
        """Return which fields of the requests differ from another prompt's, of those that keys depend on."""
        mine, theirs = dict(self.constant), dict(other.constant)
        return {name for name in mine | theirs if as_json(mine.get(name)) != as_json(theirs.get(name))}

    def work(self, frame: Frame, api: str, kept: Kept | None = None) -> Work:
        """Return the rows of a frame with the keys they have at one API, in one pass over their texts."""
        frame = read(frame)
        around = len(self.head.encode()) + len(self.tail.encode())
        parts, rendered = [], None
        for part in [frame] if self.columns is None else _slices(frame.select(self.columns)):
            contents = self.contents(part)
            message = contents["content"]
            rendered = message if self.columns is None else None
            size = message.str.len_bytes().cast(pl.Int64).alias("bytes") + around
            parts.append(pl.DataFrame([self.keys(message, api), size, contents["characters"]]))
        rows = pl.concat(parts, rechunk=True).with_row_index("row")
        if kept is not None:
            rows = rows.with_columns(kept.applied(rows["key"]))
        _check_sizes(rows)
        sent = rows if kept is None else rows[kept.open]
        first = [pl.first("row", "bytes", "characters"), pl.len().alias("rows")]
        distinct = sent.group_by("key", maintain_order=True).agg(first)
        requests = distinct.drop_nulls().with_columns(
            estimated_tokens=self.estimated_tokens(pl.col("characters"))
        )
        texts = Texts(self, frame, rendered)
        return Work(frame, rows["key"], requests.select(*REQUESTS), texts, _sizes(distinct.lazy()).collect())


def _sizes(distinct: pl.LazyFrame) -> pl.LazyFrame:
    # Sorted, so that sums over them are the same to the last digit every time.
    sizes = distinct.group_by("characters").agg(requests=pl.len(), rows=pl.col("rows").sum())
    return sizes.cast({"requests": pl.UInt32, "rows": pl.UInt32}).sort("characters")


def _slices(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the frame in slices: at least one, as an empty frame has columns too."""
    yield from (frame.slice(start, SLICE_ROWS) for start in range(0, max(frame.height, 1), SLICE_ROWS))


def _check_sizes(rows: pl.DataFrame) -> None:
    large = rows.filter(pl.col("bytes") > MESSAGE.max_bytes)
    if large.height:
        row, size = large.select("row", "bytes").row(0)
        more = f" In all, {large.height:,} rows are too large." if large.height > 1 else ""
        msg = (
            f"The request of row {row:,} (counted from 0) is {size:,} bytes, over the API's limit of "
            f"{MESSAGE.max_bytes:,}. Shorten its text, as in pl.col(...).str.head(100_000), or leave the row "
            f"out.{more}"
        )
        raise RequestTooLarge(msg)


def compile_prompt(
    prompt: str | pl.Expr,
    schema: pl.Schema,
    *,
    model: Model,
    max_tokens: int = 1024,
    system: str | None = None,
    returns: object = None,
    effort: str | None = None,
    thinking: Mapping[str, Any] | None = None,
    cache: Cache = False,
    params: Mapping[str, Any] | None = None,
    sent: str | None = None,
) -> Prompt:
    """Return what is asked about every row of frames of one schema; a PlanError says what cannot be.

    Thinking is kept off, or small where a model cannot do without, unless `thinking` or `effort` is
    given: then only what was given is sent, and the API's defaults hold for the rest.

    Parameters
    ----------
    sent : str, optional
        The model's name as it was typed and is sent; the default is its id. A dated id and its alias are one
        model, so keys have the id.

    Examples
    --------
    >>> from claudescale.api.catalog import model
    >>> frame = pl.DataFrame({"text": ["late again"]})
    >>> prompt = compile_prompt("Name it: {text}", frame.schema, model=model("claude-haiku-5-5"))
    >>> prompt.contents(frame)["content"].item()
    '{"role":"user","content":"Name it: late again"}'
    """
    text = text_of(prompt, schema)
    if returns is not None and not model.structured_outputs:
        refuse(
            f"{model.id} has no structured outputs, which returns= needs. Choose another model, or ask for "
            "the form in the prompt and read run.results['reply'] yourself."
        )
    typed = None if returns is None else compile_returns(returns)
    _check_names(schema, typed)
    extra = _checked_params(params or {}, model)
    max_tokens = plain(max_tokens, whole=True)
    if type(max_tokens) is not int or not 1 <= max_tokens <= model.max_output_tokens:
        most = f"{model.max_output_tokens:,}"
        refuse(f"max_tokens={max_tokens!r}: it is a whole number, and {model.id} writes 1 to {most} tokens.")
    if isinstance(thinking, Mapping):
        thinking = {name: plain(value, whole=True) for name, value in thinking.items()}
    thinking, output = _thinking(model, max_tokens, effort, thinking)
    output |= _output(typed, extra.pop("output_config", {}))
    charges, notes = _check_tools(model, extra, thinking, typed=typed is not None)
    control = _cache_control(cache, system)
    body: dict[str, Any] = {"model": model.id, "max_tokens": max_tokens}
    if system is not None:
        if not isinstance(system, str) or not system.strip():
            why = f"system= must be a text that says something, not {system!r:.40}."
            refuse(f"{why} Leave it out if there is none.")
        check_unicode("system", system)
        body["system"] = system
    body |= ({"thinking": dict(thinking)} if thinking else {}) | ({"output_config": output} if output else {})
    body |= extra
    tools = as_json(extra["tools"]) if extra.get("tools") else ""
    prefix = len(system or "") + len(tools)
    block = [{"type": "text", "text": system, **control}]
    return Prompt(
        head=_head(body | {"model": sent or model.id} | ({"system": block} if control else {})),
        text=text,
        template=None if isinstance(prompt, pl.Expr) else prompt,
        returns=typed,
        constant=body,
        model=model,
        shared_characters=prefix + (len(as_json(typed.json_schema)) if typed else 0),
        notes=(*notes, *_notes(body, schema, model, prefix if cache else None)),
        charges=charges._replace(
            inference_geo=extra.get("inference_geo"), caches='"cache_control":' in tools
        ),
    )


def _head(body: Mapping[str, Any]) -> str:
    return f'{as_json(body)[:-1]},"messages":['


def _check_names(schema: pl.Schema, typed: Returns | None) -> None:
    fields = () if typed is None or typed.single else tuple(typed.columns)
    for name in (*OUTPUT_COLUMNS, *fields):
        if name in schema:
            renamed = f"frame.rename({{{name!r}: {f'my_{name}'!r}}})"
            msg = f"The frame has a column {name!r}, and the results get one of that name. Use {renamed}."
            raise NameTaken(msg)
        if name in OUTPUT_COLUMNS and name in fields:
            msg = f"returns= has a field {name!r}, a name the results need for themselves. Rename the field."
            raise NameTaken(msg)


def _notes(body: Mapping[str, Any], schema: pl.Schema, model: Model, prefix: int | None) -> Iterator[str]:
    """Yield what is worth knowing of a request; `prefix` is the length of what is to be cached."""
    minimum, tokens = model.cache_minimum_tokens, round((prefix or 0) / model.characters_per_token)
    if prefix is not None and minimum is not None and tokens < minimum:
        yield (
            f"The shared prefix is about {tokens:,} tokens (estimated from characters); {model.id} caches "
            f"from {minimum:,} on, so it will most likely not be cached."
        )
    names = _properties([body.get("tools"), body.get("output_config", {}).get("format")])
    if named := next((name for name in names if name.lower() in FACTS["extracting"]), None):
        yield (
            f"A returned field called {named!r} can make the model decline (reasoning_extraction), and such "
            "a refusal is billed. Rename it, for example to 'why'."
        )
    if column := next((name for name in schema if f"{{{name}}}" in body.get("system", "")), None):
        note = "is text there: the system prompt is the same for every row. Columns belong in the prompt."
        yield f"{{{column}}} {note}"


def _cache_control(cache: Cache, system: str | None) -> dict[str, Any]:
    if cache is False:
        return {}
    if cache not in (True, "5m", "1h"):
        refuse(f"cache must be False, True, '5m' or '1h', not {cache!r}.")
    if system is None:
        refuse(
            "cache= needs a prefix that all rows share. "
            "Move what is the same for every row out of the prompt and into system=."
        )
    return {"cache_control": {"type": "ephemeral"} | ({"ttl": "1h"} if cache == "1h" else {})}


def _properties(value: Any) -> Iterator[str]:
    """Yield the names of all fields of the JSON schemas in a value."""
    if isinstance(value, Mapping):
        named = value.get("properties")
        yield from map(str, named) if isinstance(named, Mapping) else ()
        value = list(value.values())
    for inner in value if isinstance(value, list | tuple) else ():
        yield from _properties(inner)


# ----------------------------------------------------------------- further fields of the API, and thinking


def _either(words: Sequence[str]) -> str:
    return " or ".join(map(repr, words))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) and each.strip() for each in value)


def _is_metadata(value: Any) -> bool:
    named = isinstance(value, Mapping) and set(value) <= {"user_id"}
    return named and isinstance(value.get("user_id", ""), str | None)


_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "inference_geo": (lambda value: value in CHARGES.geographies, _either(CHARGES.geographies)),
    "service_tier": (lambda value: value in FACTS["service_tiers"], _either(FACTS["service_tiers"])),
    "speed": (lambda value: value == "standard", "'standard'; another costs more and is not priced here"),
    "metadata": (_is_metadata, "{'user_id': '...'} and nothing else"),
    "stop_sequences": (_are_texts, "a list of texts that are not blank, such as ['END']"),
    "output_config": (lambda value: isinstance(value, Mapping), "a dict, such as {'format': {...}}"),
    "tools": (
        lambda value: isinstance(value, list | tuple) and all(isinstance(tool, Mapping) for tool in value),
        "a list of dicts, one for each tool",
    ),
    "tool_choice": (
        lambda value: isinstance(value, Mapping) and value.get("type") in FACTS["tool_choices"],
        f"a dict whose 'type' is {_either(FACTS['tool_choices'])}",
    ),
}
"""Of fields in `params`: whether a value is taken, and what it has to be."""


def check_mode(params: Mapping[str, Any] | None, mode: str) -> None:
    """Raise what is wrong with `params` in a mode: a batch refuses some of what a live call takes.

    Source: Anthropic, *Batch processing* (checked 2026-11-29).
    """
    for name in BATCH.refused_parameters:
        if mode != "live" and (params or {}).get(name) is not None:
            refuse(
                f"params has {name!r}, which batches refuse, and mode={mode!r} may send one. Leave it out."
            )


def _checked_params(params: Mapping[str, Any], model: Model) -> dict[str, Any]:
    if not isinstance(params, Mapping):
        refuse(f"params={params!r:.60} is no dict. Write params={{'stop_sequences': ['END']}}.")
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
        text = as_json(given)
    except (TypeError, ValueError) as error:
        msg = f"params cannot be written as JSON: {error}. "
        msg += "Use only dict, list, str, int, float, bool and None."
        raise PlanError(msg) from error
    check_unicode("params", text)
    if "inference_geo" in given and model.id in CHARGES.no_inference_geo:
        refuse(f"{model.id} does not take inference_geo, which begins with Claude 4.6. Leave it out.")
    for name, (is_taken, what) in _VALUES.items():
        if name in given and not is_taken(given[name]):
            refuse(f"params has {name}={given[name]!r:.60}: it is {what}.")
    # Only the outermost names are sorted: the order inside tools and schemas may matter to the model.
    return dict(sorted(given.items()))


def _check_tools(
    model: Model, extra: dict[str, Any], thinking: Mapping[str, Any] | None, *, typed: bool
) -> tuple[Charges, tuple[str, ...]]:
    """Raise what is wrong with the tools; return what they may cost, and what is worth knowing.

    A row has nobody to run a client's tool, so one is taken only where the model must call it: what it is
    called with is then the row's reply. Of the tools that the API runs, those are taken that can be priced.
    """
    tools, choice = extra.get("tools", []), extra.get("tool_choice", {})
    if choice and not tools:
        refuse("params has 'tool_choice' and no 'tools'. Leave it out.")
    families = [_tool_family(tool) for tool in tools]
    if choice.get("type") in ("any", "tool"):
        forced = _forced_tool(model, tools, choice, thinking)
        if families[forced] == "client":
            if choice.get("disable_parallel_tool_use") is False:
                refuse(
                    "tool_choice has disable_parallel_tool_use=False, and a row has one reply. Leave it out."
                )
            if typed:
                name = tools[forced].get("name")
                refuse(f"returns= and the tool {name!r} both say what the reply looks like. Keep one.")
            extra["tool_choice"] = {**choice, "disable_parallel_tool_use": True}
            return NO_CHARGES, ()
    if "client" in families and choice.get("type") != "none":
        name = tools[families.index("client")].get("name")
        refuse(
            f"params has the tool {name!r}, and a row has nobody to run it. Use returns= to get replies in a "
            "certain form. Or make the model call it, and its input is the reply: "
            f"'tool_choice': {{'type': 'tool', 'name': {name!r}}}."
        )
    return _server_charges([tool for tool, family in zip(tools, families, strict=True) if family != "client"])


def _tool_family(tool: Mapping[str, Any]) -> str:
    """Return who runs a tool, ``"client"``, or its family at the API; raise where it cannot be used."""
    kind, name = tool.get("type"), tool.get("name")
    if kind in (None, "custom"):
        if not isinstance(name, str) or not name or not isinstance(tool.get("input_schema"), Mapping):
            refuse(
                f"the tool {name!r} needs a 'name' and an 'input_schema', such as {{'type': 'object', ...}}."
            )
        return "client"
    known: dict[str, str] = FACTS["server_tools"]
    if kind not in known:
        refused = FACTS["refused_tools"].items()
        unknown = f"is not known here, so what it costs is not either.{nearest(str(kind), known)}"
        why = next((why for start, why in refused if str(kind).startswith(start)), unknown)
        refuse(f"the tool {kind!r} {why} There is: {', '.join(known)}.")
    family, uses = known[kind], tool.get("max_uses")
    if name != family:
        refuse(f"the tool {kind!r} is called {family!r}: write 'name': {family!r}.")
    if uses is not None and (type(uses) is not int or uses < 1):
        refuse(f"the tool {family!r} has max_uses={uses!r}: it is a whole number from 1 on.")
    return family


def _forced_tool(
    model: Model,
    tools: Sequence[Mapping[str, Any]],
    choice: Mapping[str, Any],
    thinking: Mapping[str, Any] | None,
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
    if kind == "any" and len(tools) > 1 and any(tool.get("type") in (None, "custom") for tool in tools):
        refuse(
            "tool_choice 'any' with several tools leaves the reply's form open. Name one with type 'tool'."
        )
    return names.index(choice["name"]) if kind == "tool" else 0


def _server_charges(tools: Sequence[Mapping[str, Any]]) -> tuple[Charges, tuple[str, ...]]:
    """Return what tools that the API runs may cost a row, and what is worth knowing of that."""
    if not tools:
        return NO_CHARGES, ()
    searches = [tool.get("max_uses") for tool in tools if tool["name"] == "web_search"]
    # From 2026 on tools are called from code by default, and each piece of code is a turn of its own.
    callers = [
        tool.get("allowed_callers", ["direct"] if tool["type"] in FACTS["called_directly"] else None)
        for tool in tools
    ]
    calls = _sum([tool.get("max_uses") for tool in tools]) if callers == [["direct"]] * len(tools) else None
    turns = CHARGES.server_tool_turns if calls is None else min(calls + 1, CHARGES.server_tool_turns)
    fee = "Each web search has a fee, and one a row is assumed. " if searches else ""
    note = f"{fee}What web tools find is paid for as input. A pilot shows how much that is."
    return Charges(searches=_sum(searches), turns=turns), (note,)


def _sum(uses: Sequence[int | None]) -> int | None:
    """Return a sum, None where a part of it is without end."""
    return None if None in uses else sum(use or 0 for use in uses)


def _thinking(
    model: Model, max_tokens: int, effort: str | None, thinking: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
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
    budget, least = thinking.get("budget_tokens"), FACTS["least_thinking_tokens"]
    if kind == "enabled" and (not isinstance(budget, int) or budget < least):
        refuse(
            f"thinking of the type 'enabled' needs budget_tokens from {least:,} to below "
            f"max_tokens: thinking={{'type': 'enabled', 'budget_tokens': {least}}}."
        )
    fields = FACTS["thinking"].get(kind, ["type"])
    if wrong := next((name for name in thinking if name not in fields), None):
        refuse(f"thinking of the type {kind!r} has {wrong!r}. It takes {' and '.join(map(repr, fields))}.")
    if thinking.get("display") not in (None, *FACTS["displays"]):
        refuse(f"thinking has display={thinking['display']!r}: it is {_either(FACTS['displays'])}.")
    bound = model.thinking_off_up_to_effort
    off = model.thinking_off is not None and kind == model.thinking_off["type"]
    if off and effort and bound and model.efforts.index(effort) > model.efforts.index(bound):
        refuse(f"{model.id} cannot keep thinking off at effort={effort!r}. Use effort={bound!r} or less.")
    if isinstance(budget, int) and budget >= max_tokens:
        why = f"thinking's budget_tokens={budget:,} must be below max_tokens={max_tokens:,}."
        refuse(f"{why} Raise max_tokens=.")
    return thinking, output


def _output(typed: Returns | None, given: Mapping[str, Any]) -> dict[str, Any]:
    if "effort" in given:
        refuse("params has an 'effort' in its 'output_config'. Use effort= instead.")
    if typed is not None and "format" in given:
        refuse("returns= and params['output_config']['format'] both say what the reply looks like. Keep one.")
    return dict(given) | ({"format": typed.output_format} if typed else {})


# ------------------------------------------------------------- the rows of a run, and what answers them


class Texts(NamedTuple):
    """The texts of a frame's rows as JSON, rendered when they are needed: no second copy of the frame.

    Where they come from an expression they are rendered at once, as it may look at many rows.
    """

    prompt: Prompt
    frame: pl.DataFrame
    rendered: pl.Series | None

    def of(self, rows: pl.Series) -> pl.Series:
        """Return the text of each of the rows."""
        if self.rendered is not None:
            return self.rendered.gather(rows)
        return self.prompt.contents(self.frame.select(self.prompt.columns or ())[rows])["content"]

    def bodies(self, rows: pl.Series) -> Iterator[bytes]:
        """Yield the whole request of each of the rows."""
        return (f"{self.prompt.head}{text}{self.prompt.tail}".encode() for text in self.of(rows))


class Work(NamedTuple):
    """What a run needs to know of its rows."""

    frame: pl.DataFrame  # the user's rows
    keys: pl.Series  # of each row, null where it has nothing to send
    requests: pl.DataFrame  # `REQUESTS`: each distinct request once, in the frame's order
    texts: Texts  # what each request says
    sizes: pl.DataFrame  # `SIZES`, of what is sent


class Kept(NamedTuple):
    """What a retry takes over from a run."""

    keys: pl.Series  # of each row, the key of the attempt that stays its last word; null where it is sent
    tried_at: pl.Series  # of each row that has final attempts which will not do, when the last was sent
    spent: pl.Series  # keys with a final attempt that will not do: the same request gets another key
    attempts: pl.DataFrame  # `ATTEMPTS`: those that are taken over, one for each key
    typed: str  # what was typed to get it

    @classmethod
    def of(cls, run: Run, prompt: Prompt, frame: pl.DataFrame, mode: str, typed: str) -> Kept:
        """Return what a prompt over the same rows takes over from a run; a PlanError where that cannot be."""
        _check_retried(run, prompt, frame)
        returns, before = prompt.returns, run.plan.compiled.prompt
        replies = run.replies
        error = replies["error"]
        if _form(returns) != _form(before.returns) and error.null_count():
            refuse(
                "plan.retry(run, returns=...): the replies of the run have another form, so they cannot "
                "stand beside new ones. Leave returns= out, or ask all rows again: plan.replace(returns=...)."
            )
        fits = error.is_null()
        if returns is not None:
            fits &= returns.decode(replies["reply"])[1].is_null()
        met_again = _met_again(prompt.changed(before), same_mode=mode == run.plan.mode)
        stays = fits | error.is_in(met_again).fill_null(value=False)
        kept, rest = replies.filter(stays), replies.filter(~stays)
        if run.state == "finished":  # else what a row met may have been the fault of all, or of the account
            given_up = last_failures(run.attempts, replies).filter(pl.col("error").is_in(met_again))
            kept = pl.concat([kept, given_up])
        tried = pl.col("sent_at").dt.epoch("us").alias("tried_at")
        stay = kept.select("key", kept="key", tried_at=pl.lit(None, pl.Int64))
        known = pl.concat([stay, rest.select("key", pl.lit(None, pl.String).alias("kept"), tried)])
        rows = run.work.keys.to_frame().join(known, on="key", how="left", maintain_order="left")
        tried_at, spent, earlier = rows["tried_at"], rest["key"], run.plan.compiled.kept
        if earlier is not None:
            tried_at = pl.select(pl.coalesce(tried_at, earlier.tried_at)).to_series()
            spent = pl.concat([earlier.spent, spent])
        return cls(rows["kept"], tried_at, spent, kept, typed)

    @property
    def open(self) -> pl.Series:
        """Numbers of the rows that are not taken over."""
        return self.keys.is_null().arg_true()

    def at(self, rows: pl.Series) -> Kept:
        """Return this for some rows that are not taken over."""
        keys, tried_at = self.keys.gather(rows), self.tried_at.gather(rows)
        return self._replace(keys=keys, tried_at=tried_at, attempts=self.attempts.clear())

    def applied(self, keys: pl.Series) -> pl.Series:
        """Return the key of each row, given those that the requests of a plan have by themselves."""
        # When it failed is part of the key of a request that is sent again, so the same cell is a resume.
        again = (keys.is_in(self.spent.implode()) & self.keys.is_null()).fill_null(value=False).arg_true()
        names = zip(keys.gather(again), self.tried_at.gather(again), strict=True)
        fresh = [hashlib.blake2b(f"{key}\0{at}".encode(), digest_size=16).hexdigest() for key, at in names]
        own = keys.scatter(again, fresh) if fresh else keys
        return pl.select(pl.coalesce(self.keys, own).alias("key")).to_series()

    @property
    def failed(self) -> dict[str, int]:
        """How many of the rows taken over keep which error."""
        errors = self.attempts.select("key", "error").drop_nulls()
        rows = self.keys.alias("key").to_frame().join(errors, on="key", how="inner")
        return dict(rows["error"].value_counts(sort=True).iter_rows())

    def check(self, *, simulated: bool) -> None:
        """Raise where replies of a simulator would stand beside real ones."""
        if (self.attempts["simulated"] != simulated).any():
            took, sends = ("the API", "a simulator") if simulated else ("a simulator", "the API")
            refuse(
                f"The run to retry was answered by {took}, and this client calls {sends}: their replies are "
                "not mixed. Nothing was sent. Use the client of that run, or run the plan anew: "
                "run = await plan.run(client)."
            )


def _check_retried(run: Run, prompt: Prompt, frame: pl.DataFrame) -> None:
    if not hasattr(run, "sizes"):
        kind = type(run).__name__
        refuse(f"plan.retry() takes a run of a plan, not a {kind}: run = await plan.run(client).")
    if run.state in {"starting", "running"}:
        refuse("The run is still going, so nobody knows yet what fails. Wait for it first: run = await run.")
    if run.state == "left":
        refuse(
            "Batches of the run are still at the API and will be paid for. Collect them first with the same "
            "cell: run = await plan.run(client)."
        )
    rows, theirs = frame.height, run.work.frame.height
    if rows != theirs:
        refuse(
            f"The run has {theirs:,} rows and the plan {rows:,}: plan.retry() takes a run of the same rows. "
            "Use run.plan.retry(run)."
        )
    asked = run.plan.compiled.prompt.contents(run.work.frame)["content"]
    if not prompt.contents(frame)["content"].equals(asked):
        refuse(
            "The run asks something else of these rows: plan.retry() takes a run with the same texts in the "
            "same order. Use run.plan.retry(run), or ask all rows: run = await plan.run(client)."
        )


def _form(returns: Returns | None) -> object:
    return returns and (returns.json_schema, returns.columns, returns.single)


def _met_again(changed: set[str], *, same_mode: bool) -> list[str]:
    """Return the final errors that requests would surely meet again, by what of them is another."""
    errors = [] if changed - {"max_tokens"} else ["refusal"]
    if not changed:
        errors += ["model_context_window_exceeded", "tool_use"]
    if not changed and same_mode:  # a batch takes less than a live call
        errors += ["invalid_request_error", "request_too_large"]
    return errors


def last_failures(attempts: pl.DataFrame, final: pl.DataFrame) -> pl.DataFrame:
    """Return the last attempt of each key that has no final one: rows that were given up."""
    failed = attempts.join(final.select("key"), on="key", how="anti", maintain_order="left")
    return failed.unique("key", keep="last", maintain_order=True)


def results(
    work: Work, returns: Returns | None, answers: pl.DataFrame, *, simulated: bool = False
) -> pl.DataFrame:
    """Return the user's frame, same rows in the same order, with typed columns, `reply` and `error`.

    Parameters
    ----------
    answers : pl.DataFrame
        `key`, `reply`, `error`: at most one row per key.
    simulated : bool
        Mark every row as a simulator's, so that no file made of them can pass for the real thing.
    """
    mark = [pl.Series("simulated", [True]).new_from_index(0, work.frame.height)] if simulated else []
    known = answers.select("key", "reply", "error", found=pl.lit(value=True))
    joined = work.keys.to_frame().join(known, on="key", how="left", maintain_order="left")
    waiting = pl.col("key").is_not_null() & pl.col("found").is_null()
    error = pl.when(waiting).then(pl.lit(NOT_SENT)).otherwise("error").alias("error")
    joined = joined.select("reply", error)
    if returns is None:
        return work.frame.hstack([*joined.get_columns(), *mark])
    typed, broken = returns.decode(joined["reply"])
    errors = joined.select(pl.coalesce("error", broken).alias("error"))
    reply = [] if returns.single else [joined["reply"]]
    return work.frame.hstack([*typed.get_columns(), *reply, *errors.get_columns(), *mark])


# ---------------------------------------------------------------------------------------- reading frames


def read(frame: Frame) -> pl.DataFrame:
    """Return the rows of a frame; a PlanError where a LazyFrame fails."""
    try:
        return frame.lazy().collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(error) from error


def schema_of(frame: Frame) -> pl.Schema:
    """Return the columns of a frame that need not be read for it; PlanError where it cannot be."""
    try:
        return frame.lazy().collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(error) from error


def unreadable(error: Exception) -> PlanError:
    """Return what is wrong with a LazyFrame that fails; its own message may quote data, so it is linked."""
    msg = f"The frame cannot be read: {type(error).__name__}. See what it says with frame.collect()."
    return PlanError(msg)


def unknown_column(name: str, schema: pl.Schema, subject: str) -> UnknownColumn:
    """Return the error that says which column is meant, and which there are."""
    there_are = f"The results have: {', '.join(schema)}."
    return UnknownColumn(f"{subject} names the column {name!r}.{nearest(name, schema)} {there_are}")
