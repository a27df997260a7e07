"""Makes requests from a frame and puts replies back into its rows, with Polars expressions alone.

A body is a constant head, the row's own JSON, and a constant tail. Python runs per row only to hash the keys
and to read files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import polars as pl

from claudescale.api.catalog import CHARGES, MEDIA, MESSAGE
from claudescale.errors import NameTaken, PlanError, RequestTooLarge, nearest, refuse
from claudescale.prompts.replies import Returns, compile_returns
from claudescale.prompts.templates import Multipart, Text, as_json, system_of, text_of
from claudescale.text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from claudescale.api.catalog import ModelFacts
    from claudescale.prompts.retry import Retry
    from claudescale.prompts.templates import Part

Cache: TypeAlias = bool | Literal["5m", "1h"]
Frame: TypeAlias = pl.DataFrame | pl.LazyFrame
Asked: TypeAlias = "str | pl.Expr | list[Part] | list[str | Part]"
"""What a user may give as a prompt."""
Examples: TypeAlias = "Sequence[tuple[str, Any]]"

FACTS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("parameters.toml").read_text("utf-8"))
"""The fields of the API that `params` may have, and the tools."""
SLICE_ROWS = 4_000  # rows rendered at once
_SEEN_ROWS = 20  # at the head of a frame in memory, checked for a note
_BASE64 = f"^({'|'.join(MEDIA['base64'])})"  # how the text of a file begins
NOT_SENT = "not_sent"  # the error of a row that has no answer yet
FRAMING_TOKENS = 10.0  # around the text of a request: roles and turns
FORM_TOKENS = 80.0  # assumed for the prompt that the API adds for `returns`: its length is not published
OUTPUT_COLUMNS = ("reply", "error", "simulated")
"""Columns that the results add to the user's frame, besides the typed columns of ``returns=``. `simulated` is
added only where a simulator answered, `message` before it where files are sent, and `sample` where there are
several. A column of the frame with one of these names is renamed in the results: `reply` to `reply_1`."""
SIZES = pl.Schema({"characters": pl.UInt32(), "requests": pl.UInt32(), "rows": pl.UInt32()})
"""Columns of `Prompt.sizes`: the number of requests of each length, and of rows they answer. Null characters
stand for rows that are not sent."""
REQUESTS = pl.Schema(
    {"row": pl.UInt32(), "key": pl.String(), "bytes": pl.Int64(), "most_tokens": pl.Int64()}
    | {"estimated_tokens": pl.Float64()}
)
"""Columns of `Work.requests`: a request's first row in the frame, its key, the size of its body, the most
tokens it can have (no token is shorter than a byte, and files are counted separately), and its estimate."""


@contextmanager
def readable() -> Iterator[None]:
    """Raise PlanError where a LazyFrame fails; Polars' message may quote data, so it is only chained."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        msg = f"The frame cannot be read: {type(error).__name__}. frame.collect() shows the whole message."
        raise PlanError(msg) from error


@readable()
def read(frame: Frame) -> pl.DataFrame:
    """Return the rows of a frame; PlanError where a LazyFrame fails."""
    return frame.lazy().collect()


@readable()
def schema_of(frame: Frame) -> pl.Schema:
    """Return the schema of a frame without reading its rows; PlanError where that fails."""
    return frame.lazy().collect_schema()


class Charges(NamedTuple):
    """What can make a request cost more than its tokens at the list price."""

    inference_geo: str | None = None  # the geography asked for; None leaves it to the workspace
    searches: int | None = 0  # most web searches; None means unlimited
    turns: int = 1  # most turns of the model in one answer; each reads all before it
    caches: bool = False  # a tool is marked for the cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """The prompt for every row, as made by `compile_prompt`. It holds no frame."""

    head: str  # the constant JSON before a row's message: a body is head + message + tail
    text: Text | Multipart = field(repr=False)
    system: Text | None = field(repr=False)  # of each row; None if it is the same for all, or absent
    template: str = field(repr=False)  # the words of the prompt; empty for an expression
    returns: Returns | None  # makes typed columns of the replies
    constant: Mapping[str, Any] = field(repr=False)  # the request without the row's message and cache marks
    model: ModelFacts = field(repr=False)
    charges: Charges
    samples: int  # how often each row is sent
    renamed: Mapping[str, str]  # columns of the frame, and their names in the results

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that a template names; None for an expression, which cannot be rendered in slices."""
        if self.text.columns is None or self.system is None:
            return self.text.columns
        return tuple(dict.fromkeys([*self.text.columns, *(self.system.columns or ())]))

    @property
    def tail(self) -> str:
        """The constant JSON after a row's message; empty where a row's own system prompt ends the body."""
        return "]}" if self.system is None else ""

    @property
    def has_files(self) -> bool:
        """Whether images or PDFs are sent; a file that cannot be read is an error of its row."""
        return isinstance(self.text, Multipart)

    @cached_property
    def shared_characters(self) -> int:
        """The length of what all requests share: system prompt, examples, tools and schema."""
        request = self.constant
        texts = [request.get("system", ""), *(turn["content"] for turn in request.get("messages", ()))]
        forms = [request.get("tools"), self.returns and self.returns.json_schema]
        return sum(map(len, [*texts, *(as_json(form) for form in forms if form)]))

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
        """Return an expression for all input tokens of each request, from its characters.

        Characters are those that the model reads, not those of the body, where some are escaped.
        """
        added = FRAMING_TOKENS + FORM_TOKENS * (self.returns is not None)
        return (characters + self.shared_characters) / self.model.characters_per_token + added

    def notes(self, frame: Frame) -> Iterator[str]:
        """Yield notes about the requests that are not errors."""
        if self.renamed:
            pairs = ", ".join(f"{name!r} to {new!r}" for name, new in self.renamed.items())
            yield f"The results have columns with these names, so yours are renamed there: {pairs}."
        if self.charges.turns > 1:
            yield (
                "What web tools find is billed as input, each search has a fee, and the estimate assumes one "
                "per row. A pilot shows how much that is."
            )
        form = as_json(self.constant.get("output_config"))
        if named := re.search(rf'"({"|".join(FACTS["extracting"])})":\{{', form, re.IGNORECASE):
            yield (
                f"A field called {named[1]!r} can make the model decline (reasoning_extraction), and that "
                "refusal is billed. Rename it, for example to 'why'."
            )
        if isinstance(frame, pl.DataFrame) and isinstance(self.text, Text):
            columns = frame.head(_SEEN_ROWS).select(self.text.columns or ()).select(pl.col(pl.String))
            for name in [column.name for column in columns if column.str.contains(_BASE64).any()]:
                yield (
                    f"The column {name!r} holds files as text in base64, which costs a hundred times more "
                    f"than the file: prompt=[cs.image({name!r}), ...] over frame.with_columns("
                    f"pl.col({name!r}).str.decode('base64'))."
                )

    def contents(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return `MESSAGES` of the rows, or its first columns for a prompt without files.

        Where the system prompt differs by row, `content` continues to the end of the body.
        """
        contents = self.text.messages(frame)
        if self.system is None:
            return contents
        system = frame.select(system=self.system.content).to_series()
        end = pl.struct(system).struct.json_encode().str.slice(1)
        content = pl.when(system.is_not_null()).then(pl.concat_str("content", pl.lit("],"), end))
        characters = pl.col("characters") + system.str.len_chars()
        return contents.with_columns(content=content, characters=characters)

    @readable()
    def sizes(self, frame: Frame) -> pl.DataFrame:
        """Return `SIZES` of a frame, which is read as a stream and never rendered whole."""
        content, characters = self.text.content, self.text.characters
        if self.system is not None:
            content = pl.struct(text=content, system=self.system.content)
            characters += self.system.characters
        rows = frame.lazy().select(
            row=pl.int_range(pl.len()),  # keeps the height where the text is constant
            text=content.hash(),
            characters=characters.cast(pl.UInt32),
        )
        texts = rows.group_by("text", "characters").agg(rows=pl.len())
        return _sizes(texts, self.samples).collect(engine="streaming")

    def keys(self, contents: pl.Series, api: str) -> pl.Series:
        """Return the key of each message, null for null; the same request to the same API has the same key.

        Caching changes the price but not the answer, so it does not change the key.
        """
        # Polars' own hash is faster but changes between versions, and a ledger outlives them.
        start = hashlib.blake2b(f"{api}\0{_head(self.constant)}".encode(), digest_size=16)
        end = self.tail.encode()

        def key(text: bytes) -> str:
            state = start.copy()
            state.update(text + end)
            return state.hexdigest()

        texts = contents.cast(pl.Binary).to_list()  # twice as fast as making and encoding strings
        return pl.Series("key", [None if text is None else key(text) for text in texts], pl.String)

    def results_schema(self, frame: Frame) -> pl.Schema:
        """Return the columns of a frame's results, without `simulated`."""
        typed = {} if self.returns is None else self.returns.columns
        sample = {"sample": pl.Int64()} if self.samples > 1 else {}
        texts = dict.fromkeys(["reply", "error", *(["message"] if self.has_files else [])], pl.String())
        renamed = {self.renamed.get(name, name): dtype for name, dtype in schema_of(frame).items()}
        # A single value is itself the column `reply`: the last `typed` gives it its type.
        return pl.Schema({**renamed, **sample, **typed, **texts, **typed})

    def work(self, frame: Frame, api: str, retry: Retry | None = None) -> Work:
        """Return the rows of a frame with their keys at one API, in one pass over their texts."""
        frame = read(frame)
        parts = [self._rows(part, api) for part in self._slices(frame)]
        rows = pl.concat(parts, rechunk=True).with_row_index("row")
        _check_bytes(rows)
        rendered = rows.get_column("content", default=None)
        unsent = rows.select("error", "message") if self.has_files else None
        if self.samples > 1:
            rows = rows.with_columns(sample=pl.int_ranges(1, self.samples + 1)).explode("sample")
            sampled = [_sample_key(*pair) for pair in rows.select("key", "sample").iter_rows()]
            rows = rows.with_columns(pl.Series("key", sampled, pl.String))
        keys, sent = rows["key"], rows
        if retry is not None:
            keys = retry.keys_of(keys)
            sent = rows.with_columns(keys)[retry.rows_sent]
        first = pl.first("row", "bytes", "most_tokens", "characters")
        distinct = sent.group_by("key", maintain_order=True).agg(first, rows=pl.len())
        estimated = self.estimated_tokens(pl.col("characters"))
        requests = distinct.drop_nulls("key").with_columns(estimated_tokens=estimated).select(*REQUESTS)
        sizes = _sizes(distinct.lazy()).collect()
        return Work(self, frame, keys, requests, sizes, rendered, unsent)

    def _slices(self, frame: pl.DataFrame) -> list[pl.DataFrame]:
        """Return a frame in slices that are rendered one at a time."""
        if self.columns is None:  # an expression may look at many rows at once
            return [frame]
        named = frame.select(self.columns)
        return [*named.iter_slices(SLICE_ROWS)] or [named]

    def _rows(self, frame: pl.DataFrame, api: str) -> pl.DataFrame:
        """Return the key and sizes of each row, and its content where that is not rendered again later."""
        contents = self.contents(frame)
        around = len(f"{self.head}{self.tail}".encode())
        size = pl.col("content").str.len_bytes().cast(pl.Int64) + around
        rows = contents.with_columns(
            self.keys(contents["content"], api),
            bytes=size + pl.col("more_bytes"),
            most_tokens=size + pl.col("more_tokens"),
        )
        return rows if self.columns is None or self.has_files else rows.drop("content")


def _check_bytes(rows: pl.DataFrame) -> None:
    """Raise where a request is over the API's limit."""
    large = rows.select("row", "bytes").filter(pl.col("bytes") > MESSAGE.max_bytes)
    for row, size in large.iter_rows():
        refuse(
            f"The request of row {row:,} (counted from 0) is {size:,} bytes, over the API's limit of "
            f"{MESSAGE.max_bytes:,}. Shorten its text, for example with pl.col(...).str.head(100_000), "
            "make its files smaller, or leave the row out.",
            RequestTooLarge,
        )


def _sizes(distinct: pl.LazyFrame, samples: int = 1) -> pl.LazyFrame:
    """Return `SIZES` of distinct texts, each sent `samples` times."""
    sizes = distinct.group_by("characters").agg(requests=pl.len(), rows=pl.col("rows").sum())
    # Sorted, so that floating-point sums over them are reproducible.
    return sizes.with_columns(pl.col("requests", "rows") * samples).cast(SIZES).sort("characters")


def compile_prompt(
    prompt: Asked,
    schema: pl.Schema,
    *,
    model: ModelFacts,
    max_tokens: int = 1024,
    system: str | None = None,
    examples: Examples = (),
    samples: int = 1,
    returns: object = None,
    effort: str | None = None,
    thinking: Mapping[str, Any] | None = None,
    cache: Cache = False,
    params: Mapping[str, Any] | None = None,
    sent: str | None = None,
) -> Prompt:
    """Return the prompt for frames of one schema; PlanError where it cannot be sent.

    Thinking is kept off, or small where it cannot be turned off, unless `thinking` or `effort` is given:
    then only what was given is sent. `sent` is the model's name as typed and sent. A dated id and its alias
    are one model, so keys use the id.
    """
    text = Multipart.of(prompt, schema, model) if isinstance(prompt, list) else text_of(prompt, schema)
    typed = None if returns is None else compile_returns(returns)
    samples, max_tokens = plain(samples, whole=True), plain(max_tokens, whole=True)
    if type(samples) is not int or samples < 1:
        refuse(f"samples={samples!r}: it must be a whole number from 1 on: how often each row is sent.")
    if type(max_tokens) is not int or not 1 <= max_tokens <= model.max_output_tokens:
        most = f"{model.max_output_tokens:,}"
        refuse(f"max_tokens={max_tokens!r}: it must be a whole number. {model.id} writes 1 to {most} tokens.")
    fields = _checked(params or {}, model)
    thinking, output = _thinking(model, max_tokens, effort, thinking)
    output |= fields.pop("output_config", {})
    output |= {"format": {"type": "json_schema", "schema": typed.json_schema}} if typed else {}
    filled = None if system is None else system_of(system, schema)
    shared, per_row = (None, filled) if isinstance(filled, Text) else (filled, None)
    turns = _turns(examples, typed)
    optional = {"system": shared, "thinking": dict(thinking or {}), "output_config": output}
    body = {"model": model.id, "max_tokens": max_tokens}
    body |= {name: value for name, value in optional.items() if value} | fields
    body |= {"messages": turns} if turns else {}
    marked = _marked(cache, shared, turns if per_row is None else [])
    words = [*(prompt if isinstance(prompt, list) else [prompt]), system if per_row else None]
    return Prompt(
        head=_head(body | {"model": sent or model.id} | marked),
        text=text,
        system=per_row,
        samples=samples,
        renamed=_renamed(schema, typed, has_files=isinstance(text, Multipart), has_samples=samples > 1),
        template=" ".join(word for word in words if isinstance(word, str)),
        returns=typed,
        constant=body,
        model=model,
        charges=_charges(fields),
    )


def _head(body: Mapping[str, Any]) -> str:
    """Return the JSON of a body up to the row's message, which follows the examples."""
    rest = {name: value for name, value in body.items() if name != "messages"}
    examples = "".join(f"{as_json(turn)}," for turn in body.get("messages", ()))
    return f'{as_json(rest)[:-1]},"messages":[{examples}'


def _turns(examples: Examples, typed: Returns | None) -> list[dict[str, Any]]:
    """Return examples as turns of a conversation; PlanError where one is not a pair of texts."""
    turns = []
    for example in examples if isinstance(examples, list | tuple) else [examples]:
        is_pair = isinstance(example, list | tuple) and len(example) == 2  # noqa: PLR2004
        user, reply = example if is_pair else (example, None)
        assistant = reply if typed is None or reply is None else typed.example(reply)
        if not all(isinstance(text, str) and text.strip() for text in (user, assistant)):
            refuse(
                f"examples= has {example!r:.60}, which is not a pair of texts. Give a list of them: "
                "examples=[('Late again', 'complaint'), ...]."
            )
        turns += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return turns


def _renamed(
    schema: pl.Schema, typed: Returns | None, *, has_files: bool, has_samples: bool
) -> dict[str, str]:
    """Return new names for columns of the frame that the results need; raise where a field clashes."""
    needed = [*OUTPUT_COLUMNS, *(["message"] if has_files else []), *(["sample"] if has_samples else [])]
    fields = () if typed is None or typed.single else tuple(typed.columns)
    for name in fields:
        if name in needed:
            use = "Rename the field"
        elif name in schema:
            use = f"Use frame.rename({{{name!r}: {f'my_{name}'!r}}})"
        else:
            continue
        refuse(f"returns= adds a column {name!r}, and the results have one already. {use}.", NameTaken)
    renamed = {}
    for name in needed:
        if name in schema:
            numbered = (f"{name}_{number}" for number in itertools.count(1))
            renamed[name] = next(new for new in numbered if new not in schema and new not in fields)
    return renamed


def _marked(cache: Cache, system: str | None, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last field that all rows share, with a cache mark at its end."""
    if cache is False:
        return {}
    if cache not in (True, "5m", "1h"):
        refuse(f"cache= must be False, True, '5m' or '1h', not {cache!r}.")
    if system is None and not turns:
        refuse(
            "cache= needs a prefix that all rows share. "
            "Move what is the same for every row out of the prompt and into system=."
        )
    control = {"type": "ephemeral"} | ({"ttl": "1h"} if cache == "1h" else {})
    last = turns[-1]["content"] if turns else system
    block = [{"type": "text", "text": last, "cache_control": control}]
    return {"messages": [*turns[:-1], {**turns[-1], "content": block}]} if turns else {"system": block}


# ------------------------------------------------------------------------- fields, tools and thinking


def _checked(params: Mapping[str, Any], model: ModelFacts) -> dict[str, Any]:
    """Return `params` as fields of a request, without those unset; PlanError for one that cannot be sent."""
    if not isinstance(params, Mapping):
        refuse(f"params={params!r:.60} is not a dict. Write params={{'stop_sequences': ['END']}}.")
    values = {name: value for name, value in params.items() if value is not None}
    for name in [name for name in values if name not in FACTS["taken"]]:
        unknown = f"the API does not know it.{nearest(str(name), FACTS['taken'])}"
        why = FACTS["refused"].get(name, f"{unknown} There is: {', '.join(FACTS['taken'])}.")
        refuse(f"params has {name!r}: {why}")
    try:
        # Only the outermost names are sorted: the order inside tools and schemas may matter to the model.
        fields: dict[str, Any] = json.loads(as_json(dict(sorted(values.items()))))
    except TypeError as error:
        msg = f"params cannot be written as JSON: {error}. "
        raise PlanError(msg + "Use only dict, list, str, int, float, bool and None.") from error
    tools, output = fields.get("tools", []), fields.get("output_config", {})
    if not isinstance(tools, list) or not all(isinstance(value, dict) for value in [output, *tools]):
        refuse("params: tools must be a list of dicts, and output_config a dict, as the API takes them.")
    taken = () if model.id in CHARGES.no_inference_geo else CHARGES.geographies
    if "inference_geo" in fields and fields["inference_geo"] not in taken:
        there = " or ".join(map(repr, CHARGES.geographies))
        refuse(f"inference_geo is {there}, from Claude 4.6 on; {model.id} does not take this one.")
    return fields


def _charges(params: Mapping[str, Any]) -> Charges:
    """Return what a request may cost besides tokens; raise for a tool whose cost cannot be known."""
    tools, most_turns = params.get("tools", []), CHARGES.server_tool_turns
    for tool in tools:
        _check_tool(tool)
    uses = [tool.get("max_uses") for tool in tools]
    searches = [tool.get("max_uses") for tool in tools if tool["name"] == "web_search"]
    if None not in uses and all(map(_is_called_directly, tools)):
        most_turns = min(sum(uses) + 1, most_turns)
    return Charges(
        inference_geo=params.get("inference_geo"),
        searches=None if None in searches else sum(searches),
        turns=most_turns,
        caches='"cache_control":' in as_json(tools),
    )


def _check_tool(tool: Mapping[str, Any]) -> None:
    names: dict[str, str] = FACTS["server_tools"]
    kind, uses = str(tool.get("type", "custom")), tool.get("max_uses")
    if kind not in names:
        unknown = f"is not known here, and neither is its cost.{nearest(kind, names)}"
        refused = FACTS["refused_tools"].items()
        why = next((why for start, why in refused if kind.startswith(start)), unknown)
        refuse(f"the tool {tool.get('name', kind)!r} {why} There is: {', '.join(names)}.")
    if tool.get("name") != names[kind] or (uses is not None and (type(uses) is not int or uses < 1)):
        refuse(f"the tool {kind!r} needs 'name': {names[kind]!r}, and 'max_uses', if given, from 1 on.")


def _is_called_directly(tool: Mapping[str, Any]) -> bool:
    """Whether only the model calls a tool; each piece of code that calls it is another turn."""
    default = ["direct"] if tool["type"] in FACTS["called_directly"] else []
    return bool(tool.get("allowed_callers", default) == ["direct"])


def _thinking(
    model: ModelFacts, max_tokens: int, effort: str | None, thinking: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """Return the ``thinking`` and the ``output_config`` to send."""
    kind = thinking.get("type", "") if isinstance(thinking, Mapping) else thinking
    choices = {"effort=": (effort, model.efforts), "thinking of the type ": (kind, model.thinking_types)}
    for name, (value, taken) in choices.items():
        if value is not None and value not in taken:
            there = f"It takes {', '.join(map(repr, taken))}." if taken else "Leave it out."
            refuse(f"{model.id} does not take {name}{value!r}. {there}")
    if effort is None and thinking is None:
        return model.thinking_off, {"effort": model.effort_for_bulk} if model.effort_for_bulk else {}
    output = {"effort": effort} if effort else {}
    if thinking is None:
        return None, output
    fields = FACTS["thinking"].get(kind, ["type"])
    if wrong := next((name for name in thinking if name not in fields), None):
        takes = " and ".join(map(repr, fields))
        refuse(f"thinking of the type {kind!r} does not take {wrong!r}. It takes {takes}.")
    budget, least = thinking.get("budget_tokens"), FACTS["least_thinking_tokens"]
    if kind == "enabled" and not (isinstance(budget, int) and least <= budget < max_tokens):
        refuse(
            f"thinking of the type 'enabled' needs budget_tokens from {least:,} to below "
            f"max_tokens={max_tokens:,}: thinking={{'type': 'enabled', 'budget_tokens': {least}}}."
        )
    return thinking, output


# ------------------------------------------------------------------ the rows of a run and their results


class Work(NamedTuple):
    """What a run needs to know about its rows. Their texts are rendered on demand."""

    prompt: Prompt
    frame: pl.DataFrame  # the user's rows
    keys: pl.Series  # one per row and sample, null where there is nothing to send
    requests: pl.DataFrame  # `REQUESTS`: each distinct request once, in the frame's order
    sizes: pl.DataFrame  # `SIZES` of what is sent
    rendered: pl.Series | None  # messages of an expression or with digests; None if rendered later
    unsent: pl.DataFrame | None  # for prompts with files: `error` and `message` of each row

    def messages(self, rows: pl.Series) -> pl.Series:
        """Return the message of each row as JSON, with its files; `FileChanged` if one has changed."""
        prompt, frame = self.prompt, self.frame.select(self.prompt.columns or ())
        if self.rendered is None:
            return prompt.contents(frame[rows])["content"]
        texts = self.rendered.gather(rows)
        if isinstance(prompt.text, Multipart):
            pairs = zip(texts, frame[rows].iter_rows(named=True), strict=True)
            texts = pl.Series([prompt.text.filled(text, row) for text, row in pairs], dtype=pl.String)
        return texts

    def bodies(self, rows: pl.Series) -> Iterator[bytes]:
        """Yield the whole request of each row; files are read only when it is asked for."""
        for part in rows.to_frame().iter_slices(1 if self.prompt.has_files else SLICE_ROWS):
            for text in self.messages(part.to_series()):
                yield f"{self.prompt.head}{text}{self.prompt.tail}".encode()

    def results(
        self, answers: pl.DataFrame, places: pl.Series | None = None, *, simulated: bool = False
    ) -> pl.DataFrame:
        """Return the user's frame, same rows in the same order, with typed columns, `reply` and `error`.

        Columns of the frame with one of these names are renamed, as in `Prompt.renamed`.

        Parameters
        ----------
        answers : pl.DataFrame
            `key`, `reply`, `error`: at most one row per key.
        places : pl.Series, optional
            Positions of the result rows to return; the default is all.
        simulated : bool
            Mark every row as simulated, so that a file of them cannot pass for real results.
        """
        prompt, keys, unsent = self.prompt, self.keys, self.unsent
        frame = self.frame.rename(prompt.renamed)
        if places is None and prompt.samples > 1:
            places = pl.int_range(keys.len(), eager=True)
        if places is not None:
            rows, keys = places // prompt.samples, keys.gather(places)
            frame, unsent = frame[rows], unsent if unsent is None else unsent[rows]
            if prompt.samples > 1:
                frame = frame.with_columns(sample=places.cast(pl.Int64) % prompt.samples + 1)
        answers = answers.select("key", "reply", "error")
        joined = keys.to_frame().join(answers, on="key", how="left", maintain_order="left")
        # A final attempt has a reply, or an error that says why it has none.
        is_waiting = pl.col("key").is_not_null() & pl.col("reply").is_null() & pl.col("error").is_null()
        columns = joined.select("reply", error=pl.when(is_waiting).then(pl.lit(NOT_SENT)).otherwise("error"))
        if unsent is not None:
            columns = columns.with_columns(unsent["message"], error=pl.coalesce("error", unsent["error"]))
        if prompt.returns is not None:
            typed, broken = prompt.returns.decode(joined["reply"])
            columns = columns.with_columns(error=pl.coalesce("error", broken))
            columns = typed.hstack(columns.drop("reply") if prompt.returns.single else columns)
        return frame.hstack(columns.with_columns(simulated=True) if simulated else columns)


def _sample_key(key: str | None, sample: int) -> str | None:
    """Return the key of one sample of a row; the first has the key of a plan without samples."""
    return key if key is None or sample == 1 else key_of(f"{key}\0{sample}")


def key_of(text: str) -> str:
    """Return the hash by which a ledger recognizes a request."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
