"""From a frame to the requests of a run, and from its replies back to the rows, by Polars expressions alone.

A body is a constant head, what differs by row as JSON, a constant tail. No Python runs per row except to
hash the keys, and to read the files of a row that has some.
"""

from __future__ import annotations

import hashlib
import itertools
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import polars as pl

from claudescale.api.catalog import CHARGES, MEDIA, MESSAGE
from claudescale.errors import NameTaken, PlanError, RequestTooLarge, UnknownColumn, nearest, refuse
from claudescale.prompts.replies import Returns, compile_returns
from claudescale.prompts.templates import Parts, Text, as_json, check_unicode, system_of, text_of
from claudescale.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from claudescale.api.catalog import Model
    from claudescale.prompts.templates import Part
    from claudescale.running.runs import Run

Cache: TypeAlias = bool | Literal["5m", "1h"]
Frame: TypeAlias = pl.DataFrame | pl.LazyFrame
Asked: TypeAlias = "str | pl.Expr | list[Part] | list[str | Part]"
"""What may be given as a prompt."""
Examples: TypeAlias = "Sequence[tuple[str, Any]]"

FACTS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("parameters.toml").read_text("utf-8"))
"""Which fields of the API `params` may have, and which tools."""
SLICE_ROWS = 4_000  # so many rows are rendered at once
NOT_SENT = "not_sent"  # the error of a row that has no answer yet
FRAMING_TOKENS = 10.0  # what a request has around its text: roles, turns
FORM_TOKENS = 80.0  # of the prompt that the API adds for `returns`: assumed, as its length is not published
OUTPUT_COLUMNS = ("reply", "error", "simulated")
"""What the results add to the user's frame, besides the typed columns of ``returns=``: the last one only
where a simulator answered, before it `message` where files are sent, and `sample` where there are several.
A column of the frame that has such a name is renamed in the results: `reply` to `reply_1`."""
SIZES = pl.Schema({"characters": pl.UInt32(), "requests": pl.UInt32(), "rows": pl.UInt32()})
"""Columns of `Prompt.sizes`: how many requests, answering how many rows, there are of each length; null
characters are rows that are not sent."""
REQUESTS = pl.Schema(
    {"row": pl.UInt32(), "key": pl.String(), "bytes": pl.Int64(), "most_tokens": pl.Int64()}
    | {"estimated_tokens": pl.Float64()}
)
"""Columns of `Work.requests`: its first row in the frame, its key, the size of its body, and the most tokens
that can be: no token is shorter than a byte, and a file has its own."""


class Charges(NamedTuple):
    """What can make a request cost more than its tokens at the list price."""

    inference_geo: str | None = None  # where it is asked to be answered; None leaves it to the workspace
    searches: int | None = 0  # most web searches; None is without end
    turns: int = 1  # most turns of the model in one answer, each of which reads all before it
    caches: bool = False  # a tool is marked for the cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """What is asked about every row. `compile_prompt` makes it; it holds no frame."""

    head: str  # the constant JSON before a row's message: a body is head + message + tail
    tail: str = "]}"
    text: Text | Parts = field(repr=False)
    system: Text | None = field(repr=False)  # of each row; None where it is the same for all, or none
    template: str | None = field(repr=False)  # the prompt; None of an expression
    returns: Returns | None  # what makes typed columns of the replies
    constant: Mapping[str, Any] = field(repr=False)  # the request without its messages, and without caching
    model: Model = field(repr=False)
    shared_characters: int  # of every request besides the row's text: system prompt, schema, tools
    notes: tuple[str, ...]  # what is worth knowing and no error
    charges: Charges
    samples: int = 1  # how often each row is sent
    renamed: Mapping[str, str] = field(default_factory=dict)  # columns of the frame that results rename

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns a template names; None of an expression, which cannot be rendered a slice at a time."""
        if self.text.columns is None or self.system is None:
            return self.text.columns
        return tuple(dict.fromkeys([*self.text.columns, *(self.system.columns or ())]))

    @property
    def has_files(self) -> bool:
        """Whether images or PDFs are sent: what cannot be read is an error of its row."""
        return isinstance(self.text, Parts)

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
        added = FRAMING_TOKENS + FORM_TOKENS * (self.returns is not None)
        return (characters + self.shared_characters) / self.model.characters_per_token + added

    def contents(self, frame: pl.DataFrame, stamps: pl.Series | None = None) -> pl.DataFrame:
        """Return the `characters` of each row and its part of the body as JSON, null where it is not sent.

        Of a prompt of several parts as `templates.MESSAGES`; given their `stamps`, with files to be sent.
        """
        if isinstance(self.text, Parts):
            found = self.text.messages(frame, "key" if stamps is None else "send", stamps)
        else:
            # The row number in the same select holds the height: an expression that drops or adds rows fails.
            number = pl.int_range(pl.len(), dtype=pl.UInt32)
            text = frame.lazy().select(row=number, content=self.text.content)
            message = pl.struct(pl.lit("user").alias("role"), "content").struct.json_encode()
            contents = text.select(
                "row",
                characters=pl.col("content").str.len_chars(),
                content=pl.when(pl.col("content").is_not_null()).then(message),
            )
            found = contents.collect().drop("row")
        if self.system is None:
            return found
        system = frame.select(system=self.system.content).to_series()
        ending = pl.struct(system).struct.json_encode().str.slice(1)
        both = pl.when(system.is_not_null()).then(pl.concat_str("content", pl.lit("],"), ending))
        return found.with_columns(content=both, characters=pl.col("characters") + system.str.len_chars())

    def bodies(self, contents: pl.Series) -> pl.Series:
        """Return the whole body of each message."""
        return (self.head + contents + self.tail).alias("body")

    def sizes(self, frame: Frame, only: pl.Series | None = None) -> pl.DataFrame:
        """Return `SIZES` of a frame, or of some of its rows: read as a stream, nothing rendered whole."""
        texts = [text for text in (self.text, self.system) if text is not None]
        content = self.text.content if len(texts) == 1 else pl.struct(a=texts[0].content, b=texts[1].content)
        characters = pl.sum_horizontal([text.characters for text in texts], ignore_nulls=False)
        rows = frame.lazy().select(
            pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
            content.hash().alias("text"),
            characters.cast(pl.UInt32).alias("characters"),
        )
        if self.samples > 1:
            rows = _sampled(rows, self.samples).with_columns(row="place")
        if only is not None:
            rows = rows.join(only.alias("row").to_frame().lazy(), on="row", how="semi")
        group = ["text", "characters", *(["sample"] if self.samples > 1 else [])]
        return _sizes(rows.group_by(group).agg(rows=pl.len())).collect(engine="streaming")

    def keys(self, contents: pl.Series, api: str) -> pl.Series:
        """Return the key of each message, null for null: the same request to the same API, the same key.

        Whether the prompt is cached changes the price and not the answer, so it does not change the key.
        """
        # Polars' own hash is faster and changes between versions; a ledger must know its rows for ever.
        start = hashlib.blake2b(f"{api}\0{_head(self.constant)}".encode(), digest_size=16)
        end = self.tail.encode()

        def key(text: bytes) -> str:
            state = start.copy()
            state.update(text + end)
            return state.hexdigest()

        texts = contents.cast(pl.Binary).to_list()  # half the time of making strings and encoding them
        return pl.Series("key", [None if text is None else key(text) for text in texts], pl.String)

    def results_schema(self, frame: Frame) -> pl.Schema:
        """Return the columns that the results of a frame have."""
        typed = {} if self.returns is None else self.returns.columns
        sample = {"sample": pl.Int64()} if self.samples > 1 else {}
        message = {"message": pl.String()} if self.has_files else {}
        texts = {"reply": pl.String(), "error": pl.String(), **message}
        given = {self.renamed.get(name, name): dtype for name, dtype in schema_of(frame).items()}
        return pl.Schema({**given, **sample, **typed, **texts, **typed})

    def changed(self, other: Prompt) -> set[str]:
        """Return which fields of the requests differ from another prompt's, of those that keys depend on."""
        mine, theirs = self.constant, other.constant
        names = {*mine, *theirs}
        return {name for name in names if as_json(mine.get(name)) != as_json(theirs.get(name))}

    def work(self, frame: Frame, api: str, kept: Kept | None = None) -> Work:
        """Return the rows of a frame with the keys they have at one API, in one pass over their texts."""
        frame = read(frame)
        around = len(self.head.encode()) + len(self.tail.encode())
        parts, rendered, unsent, stamps = [], None, None, None
        for part in [frame] if self.columns is None else _slices(frame.select(self.columns)):
            contents = self.contents(part)
            message = contents["content"]
            rendered = message if self.columns is None else None
            size = message.str.len_bytes().cast(pl.Int64).alias("bytes") + around
            found = contents.drop("content").with_columns(self.keys(message, api), size, most_tokens=size)
            if self.has_files:
                more = pl.col("bytes") + pl.col("file_bytes"), pl.col("most_tokens") + pl.col("file_tokens")
                found = found.with_columns(*more)
            parts.append(found)
        rows = pl.concat(parts, rechunk=True).with_row_index("row")
        if self.has_files:
            unsent, stamps = rows.select("error", "message"), rows["stamp"]
        _check_sizes(rows, has_files=self.has_files)
        if self.samples > 1:
            rows = _sampled(rows.lazy(), self.samples).collect()
            keys = zip(rows["key"], rows["sample"], strict=True)
            key = [key_of(f"{key}\0{sample}") if key and sample > 1 else key for key, sample in keys]
            rows = rows.with_columns(pl.Series("key", key, pl.String))
        if kept is not None:
            rows = rows.with_columns(kept.applied(rows["key"]))
        sent = rows if kept is None else rows[kept.open]
        first = [pl.first("row", "bytes", "most_tokens", "characters"), pl.len().alias("rows")]
        distinct = sent.group_by("key", maintain_order=True).agg(first)
        requests = distinct.filter(pl.col("key").is_not_null()).with_columns(
            estimated_tokens=self.estimated_tokens(pl.col("characters"))
        )
        texts, sizes = Texts(self, frame, rendered, stamps), _sizes(distinct.lazy()).collect()
        return Work(frame, rows["key"], requests.select(*REQUESTS), texts, sizes, unsent)


def _sampled(rows: pl.LazyFrame, samples: int) -> pl.LazyFrame:
    """Return each row as often as it is sent: with its `sample`, from 1, and its `place` in the results."""
    every = rows.with_columns(sample=pl.int_ranges(1, pl.lit(samples + 1))).explode("sample")
    return every.with_columns(place=(pl.col("row") * samples + pl.col("sample") - 1).cast(pl.UInt32))


def _sizes(distinct: pl.LazyFrame) -> pl.LazyFrame:
    # Sorted, so that sums over them are the same to the last digit every time.
    sizes = distinct.group_by("characters").agg(requests=pl.len(), rows=pl.col("rows").sum())
    return sizes.cast({"requests": pl.UInt32, "rows": pl.UInt32}).sort("characters")


def _slices(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the frame in slices: at least one, as an empty frame has columns too."""
    yield from (frame.slice(start, SLICE_ROWS) for start in range(0, max(frame.height, 1), SLICE_ROWS))


def _check_sizes(rows: pl.DataFrame, *, has_files: bool) -> None:
    large = rows.filter(pl.col("bytes") > MESSAGE.max_bytes)
    if large.height:
        row, size = large.select("row", "bytes").row(0)
        more = f" In all, {large.height:,} rows are too large." if large.height > 1 else ""
        text = "Shorten its text, for example with pl.col(...).str.head(100_000)"
        refuse(
            f"The request of row {row:,} (counted from 0) is {size:,} bytes, over the API's limit of "
            f"{MESSAGE.max_bytes:,}. {'Make its files smaller' if has_files else text}, or leave the row "
            f"out.{more}",
            RequestTooLarge,
        )


def compile_prompt(
    prompt: Asked,
    schema: pl.Schema,
    *,
    model: Model,
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
    head: pl.DataFrame | None = None,
) -> Prompt:
    """Return what is asked about every row of frames of one schema; a PlanError says what cannot be.

    Thinking is kept off, or small where a model cannot do without, unless `thinking` or `effort` is
    given: then only what was given is sent, and the API's defaults hold for the rest.

    Parameters
    ----------
    sent : str, optional
        The model's name as it was typed and is sent; the default is its id. A dated id and its alias are one
        model, so keys have the id.
    head : pl.DataFrame, optional
        A few rows, to see whether one holds files as text.

    Examples
    --------
    >>> from claudescale.api.catalog import model
    >>> frame = pl.DataFrame({"text": ["late again"]})
    >>> prompt = compile_prompt("Name it: {text}", frame.schema, model=model("claude-haiku-5-5"))
    >>> prompt.contents(frame)["content"].item()
    '{"role":"user","content":"Name it: late again"}'
    """
    text = Parts.of(prompt, schema, model) if isinstance(prompt, list) else text_of(prompt, schema)
    if returns is not None and not model.structured_outputs:
        refuse(
            f"{model.id} has no structured outputs, which returns= needs. Choose another model, or ask for "
            "the form in the prompt and read run.results['reply'] yourself."
        )
    typed = None if returns is None else compile_returns(returns)
    samples = plain(samples, whole=True)
    if type(samples) is not int or samples < 1:
        refuse(f"samples={samples!r}: it must be a whole number from 1 on: how often each row is sent.")
    more = {"message": isinstance(text, Parts), "sample": samples > 1}
    own = [*OUTPUT_COLUMNS, *(name for name, is_there in more.items() if is_there)]
    renamed = _renamed(schema, typed, own)
    extra = _checked(params or {}, model)
    max_tokens = plain(max_tokens, whole=True)
    if type(max_tokens) is not int or not 1 <= max_tokens <= model.max_output_tokens:
        most = f"{model.max_output_tokens:,}"
        refuse(f"max_tokens={max_tokens!r}: it must be a whole number. {model.id} writes 1 to {most} tokens.")
    thinking, output = _thinking(model, max_tokens, effort, thinking)
    output |= _output(typed, extra.pop("output_config", {}))
    charges, notes = _charges(extra, typed=typed is not None)
    _check_forced(model, extra, thinking)
    if renamed:
        pairs = ", ".join(f"{name!r} to {new!r}" for name, new in renamed.items())
        words = f"The results have columns with these names, so yours are renamed there: {pairs}."
        notes = (words, *notes)
    shared, per_row = (None, None) if system is None else system_of(system, schema)
    turns = _turns(examples, typed)
    fields = {"system": shared, "thinking": dict(thinking or {}), "output_config": output}
    body: dict[str, Any] = {"model": model.id, "max_tokens": max_tokens}
    body |= {name: value for name, value in fields.items() if value} | extra
    body |= {"messages": turns} if turns else {}
    marked = _marked(cache, shared, turns, is_shared=per_row is None)
    prefix = len(shared or "") + (len(as_json(extra["tools"])) if extra.get("tools") else 0)
    prefix += sum(len(turn["content"]) for turn in turns)
    return Prompt(
        head=_head(body | {"model": sent or model.id} | marked),
        tail="]}" if per_row is None else "",
        text=text,
        system=per_row,
        samples=samples,
        renamed=renamed,
        template=_template(prompt, system if per_row else None),
        returns=typed,
        constant=body,
        model=model,
        shared_characters=prefix + (len(as_json(typed.json_schema)) if typed else 0),
        notes=(*notes, *_notes(body, text, head, model, prefix if cache else None)),
        charges=charges,
    )


def _head(body: Mapping[str, Any]) -> str:
    """Return the JSON of a body up to the row's message, which stands after the examples."""
    rest = {name: value for name, value in body.items() if name != "messages"}
    examples = "".join(f"{as_json(turn)}," for turn in body.get("messages", ()))
    return f'{as_json(rest)[:-1]},"messages":[{examples}'


def _template(prompt: Asked, system: str | None) -> str | None:
    """Return the words of a prompt, by which the length of a reply is guessed."""
    if isinstance(prompt, pl.Expr):
        return system
    texts = [prompt] if isinstance(prompt, str) else [piece for piece in prompt if isinstance(piece, str)]
    return " ".join([*texts, *([system] if system else [])])


def _turns(examples: Examples, typed: Returns | None) -> list[dict[str, Any]]:
    """Return examples as turns of a conversation; PlanError for what is none."""
    turns = []
    such_as = "Give pairs of texts: examples=[('Late again', 'complaint'), ...]."
    if not isinstance(examples, list | tuple):
        refuse(f"examples={examples!r:.60} is not a list. {such_as}")
    for example in examples:
        if not isinstance(example, list | tuple) or len(example) != 2:  # noqa: PLR2004 - user, assistant
            refuse(f"examples= has {example!r:.60}, which is not a pair. {such_as}")
        user, reply = example
        reply = typed.example(reply) if typed is not None else reply
        for role, content in (("user", user), ("assistant", reply)):
            if not isinstance(content, str) or not content.strip():
                refuse(f"examples= has {content!r:.60} for the {role}, which is not a text. {such_as}")
            check_unicode("examples=", content)
            turns.append({"role": role, "content": content})
    return turns


def _renamed(schema: pl.Schema, typed: Returns | None, own: list[str]) -> dict[str, str]:
    """Return the frame's columns whose names the results need, and new names; raise for a field's."""
    fields = () if typed is None or typed.single else tuple(typed.columns)
    for name in fields:
        if name in own:
            refuse(
                f"returns= has a field {name!r}, a name that the results use. Rename the field.",
                NameTaken,
            )
        if name in schema:
            use = f"frame.rename({{{name!r}: {f'my_{name}'!r}}})"
            refuse(
                f"The frame already has a column {name!r}, and returns= adds one. Use {use}.",
                NameTaken,
            )
    there, renamed = {*schema, *fields}, {}
    for name in own:
        if name in schema:
            numbered = (f"{name}_{number}" for number in itertools.count(1))
            renamed[name] = next(new for new in numbered if new not in there)
    return renamed


def _notes(
    body: Mapping[str, Any], text: Text | Parts, head: pl.DataFrame | None, model: Model, prefix: int | None
) -> Iterator[str]:
    """Yield what is worth knowing of a request; `prefix` is the length of what is to be cached."""
    minimum, tokens = model.cache_minimum_tokens, round((prefix or 0) / model.characters_per_token)
    if prefix is not None and minimum is not None and tokens < minimum:
        yield (
            f"The shared prefix is about {tokens:,} tokens (estimated from characters); {model.id} caches "
            f"only from {minimum:,} on, so it will most likely not be cached."
        )
    names = _properties([body.get("tools"), body.get("output_config", {}).get("format")])
    if named := next((name for name in names if name.lower() in FACTS["extracting"]), None):
        yield (
            f"A field called {named!r} can make the model decline (reasoning_extraction), and that "
            "refusal is billed. Rename it, for example to 'why'."
        )
    if isinstance(text, Parts):
        yield from text.notes(head)
        return
    texts = pl.DataFrame() if head is None else head.select(text.columns or ()).select(pl.col(pl.String))
    for name in texts.columns:
        if texts[name].str.contains(f"^({'|'.join(MEDIA['base64'])})").any():
            yield (
                f"The column {name!r} holds files as text in base64, which costs a hundred times more than "
                f"the file: prompt=[cs.image({name!r}), ...] over frame.with_columns("
                f"pl.col({name!r}).str.decode('base64'))."
            )


def _marked(
    cache: Cache, system: str | None, turns: list[dict[str, Any]], *, is_shared: bool
) -> dict[str, Any]:
    """Return the last field that all rows share, with the mark of the cache at its end."""
    if cache is False:
        return {}
    if cache not in (True, "5m", "1h"):
        refuse(f"cache= must be False, True, '5m' or '1h', not {cache!r}.")
    if not is_shared or (system is None and not turns):
        refuse(
            "cache= needs a prefix that all rows share. "
            "Move what is the same for every row out of the prompt and into system=."
        )
    control = {"type": "ephemeral"} | ({"ttl": "1h"} if cache == "1h" else {})
    last = turns[-1]["content"] if turns else system
    block = [{"type": "text", "text": last, "cache_control": control}]
    return {"messages": [*turns[:-1], {**turns[-1], "content": block}]} if turns else {"system": block}


def _properties(value: Any) -> Iterator[str]:
    """Yield the names of all fields of the JSON schemas in a value."""
    if isinstance(value, dict):
        yield from map(str, value.get("properties", ()))
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _properties(inner)


def _output(typed: Returns | None, given: Mapping[str, Any]) -> dict[str, Any]:
    if "effort" in given:
        refuse("params has an 'effort' in its 'output_config'. Use effort= instead.")
    if typed is not None and "format" in given:
        refuse("returns= and params['output_config']['format'] both define the reply. Keep one.")
    return dict(given) | ({"format": {"type": "json_schema", "schema": typed.json_schema}} if typed else {})


# ------------------------------------------------------------------------- fields, tools and thinking


def _checked(params: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Return the further fields of a request, without those left unset; PlanError for what cannot be sent."""
    if not isinstance(params, Mapping):
        refuse(f"params={params!r:.60} is not a dict. Write params={{'stop_sequences': ['END']}}.")
    given = {name: value for name, value in params.items() if value is not None}
    for name, value in given.items():
        if name in FACTS["refused"]:
            refuse(f"params has {name!r}: {FACTS['refused'][name]}")
        if name not in FACTS["taken"]:
            refuse(
                f"params has {name!r}, which the API does not know, so it would refuse every row."
                f"{nearest(str(name), FACTS['taken'])} There is: {', '.join(FACTS['taken'])}."
            )
        if not _FITS.get(name, lambda _: True)(value):
            refuse(f"params has {name}={value!r:.60}: it must be {FACTS['values'][name]}.")
    try:
        check_unicode("params", as_json(given))
    except TypeError as error:
        msg = f"params cannot be written as JSON: {error}. "
        raise PlanError(msg + "Use only dict, list, str, int, float, bool and None.") from error
    if "inference_geo" in given and model.id in CHARGES.no_inference_geo:
        refuse(f"{model.id} does not take inference_geo, which begins with Claude 4.6. Leave it out.")
    # Only the outermost names are sorted: the order inside tools and schemas may matter to the model.
    return dict(sorted(given.items()))


_FITS: dict[str, Callable[[Any], bool]] = {
    "inference_geo": lambda value: value in CHARGES.geographies,
    "output_config": lambda value: isinstance(value, Mapping),
    "tools": lambda value: (
        isinstance(value, list | tuple) and all(isinstance(tool, Mapping) for tool in value)
    ),
    "tool_choice": lambda value: isinstance(value, Mapping),
}
"""Whether a value is taken, of fields that decide the price or the reply. The API judges the others."""


def _charges(extra: dict[str, Any], *, typed: bool) -> tuple[Charges, tuple[str, ...]]:
    """Raise what is wrong with the tools; return what a request may cost, and what is worth knowing of that.

    A row has nobody to run a client's tool, so one is taken only where the model must call it: what it is
    called with is then the row's reply. Of the tools that the API runs, those are taken that can be priced.
    """
    tools, choice = extra.get("tools", []), extra.get("tool_choice", {})
    charges = Charges(inference_geo=extra.get("inference_geo"), caches='"cache_control":' in as_json(tools))
    own = [tool for tool in tools if tool.get("type") in (None, "custom")]
    served = [tool for tool in tools if tool not in own]
    for tool in served:
        _check_served(str(tool.get("type")), tool)
    called = own if choice.get("type") == "any" and not served else []
    if choice.get("type") == "tool":
        called = [tool for tool in own if tool.get("name") == choice.get("name")]
    if called:
        if typed:
            name = called[0].get("name")
            refuse(f"returns= and the tool {name!r} both define the reply. Keep one.")
        extra["tool_choice"] = {**choice, "disable_parallel_tool_use": True}
        return charges, ()
    if own and choice.get("type") != "none":
        name = own[0].get("name")
        refuse(
            f"params has the tool {name!r}, and nothing runs tools for a row. To get replies in a certain "
            "form, use returns=. Or force the call, and its input becomes the reply: "
            f"'tool_choice': {{'type': 'tool', 'name': {name!r}}}."
        )
    if not served:
        return charges, ()
    uses: list[Any] = [tool.get("max_uses") for tool in served]
    searches = [most for most, tool in zip(uses, served, strict=True) if tool.get("name") == "web_search"]
    # From 2026 on tools are called from code by default, and each piece of code is a turn of its own.
    direct = all(
        tool.get("allowed_callers", ["direct"] if tool["type"] in FACTS["called_directly"] else None)
        == ["direct"]
        for tool in served
    )
    turns = CHARGES.server_tool_turns
    if None not in uses and direct:
        turns = min(sum(uses) + 1, turns)
    fee = "Each web search has a fee, and the estimate assumes one per row. " if searches else ""
    note = f"{fee}What web tools find is billed as input. A pilot shows how much that is."
    return charges._replace(searches=None if None in searches else sum(searches), turns=turns), (note,)


def _check_forced(model: Model, extra: Mapping[str, Any], thinking: Mapping[str, Any] | None) -> None:
    """Refuse a call that the model must make, where it cannot be made."""
    choice = extra.get("tool_choice", {})
    if choice and not extra.get("tools"):
        refuse("params has 'tool_choice' but no 'tools'. Leave it out.")
    if choice.get("type") not in ("any", "tool"):
        return
    if model.id in CHARGES.no_forced_tool:
        refuse(f"{model.id} cannot be forced to call a tool. Use returns= instead, or another model.")
    if (thinking or {}).get("type") == "enabled":
        refuse("A forced tool_choice does not work with thinking of the type 'enabled'. Leave thinking= out.")


def _check_served(kind: str, tool: Mapping[str, Any]) -> None:
    """Refuse a tool of the API whose cost is not known, before a row or after it."""
    known: dict[str, str] = FACTS["server_tools"]
    if kind not in known:
        unknown = f"is not known here, and neither is its cost.{nearest(kind, known)}"
        refused = FACTS["refused_tools"].items()
        why = next((why for start, why in refused if kind.startswith(start)), unknown)
        refuse(f"the tool {kind!r} {why} There is: {', '.join(known)}.")
    uses = tool.get("max_uses")
    if tool.get("name") != known[kind] or (uses is not None and (type(uses) is not int or uses < 1)):
        refuse(f"the tool {kind!r} needs 'name': {known[kind]!r}, and 'max_uses', if given, from 1 on.")


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
    thinking = {name: plain(value, whole=True) for name, value in thinking.items()}
    fields = FACTS["thinking"].get(kind, ["type"])
    if wrong := next((name for name in thinking if name not in fields), None):
        takes = " and ".join(map(repr, fields))
        refuse(f"thinking of the type {kind!r} does not take {wrong!r}. It takes {takes}.")
    budget, least = thinking.get("budget_tokens"), FACTS["least_thinking_tokens"]
    if kind == "enabled" and (not isinstance(budget, int) or budget < least):
        refuse(
            f"thinking of the type 'enabled' needs budget_tokens from {least:,} to below "
            f"max_tokens: thinking={{'type': 'enabled', 'budget_tokens': {least}}}."
        )
    if isinstance(budget, int) and budget >= max_tokens:
        why = f"thinking's budget_tokens={budget:,} must be below max_tokens={max_tokens:,}."
        refuse(f"{why} Raise max_tokens=.")
    return thinking, output


# ------------------------------------------------------------- the rows of a run, and what answers them


class Texts(NamedTuple):
    """The texts of a frame's rows as JSON, rendered when they are needed: no second copy of the frame.

    Where they come from an expression they are rendered at once, as it may look at many rows.
    """

    prompt: Prompt
    frame: pl.DataFrame
    rendered: pl.Series | None
    stamps: pl.Series | None  # of rows with files, what they were when the keys were made

    def of(self, rows: pl.Series) -> pl.Series:
        """Return the text of each of the rows, their files in it; `FileChanged` where one is another now."""
        if self.rendered is not None:
            return self.rendered.gather(rows)
        part = self.frame.select(self.prompt.columns or ())[rows]
        stamps = None if self.stamps is None else self.stamps.gather(rows)
        return self.prompt.contents(part, stamps)["content"]

    def bodies(self, rows: pl.Series) -> Iterator[bytes]:
        """Yield the whole request of each of the rows; files are read as it is asked for."""
        for part in rows.to_frame().iter_slices(SLICE_ROWS if self.stamps is None else 1):
            for text in self.of(part.to_series()):
                yield f"{self.prompt.head}{text}{self.prompt.tail}".encode()


class Work(NamedTuple):
    """What a run needs to know of its rows."""

    frame: pl.DataFrame  # the user's rows
    keys: pl.Series  # of each row, as often as it is sent, null where it has nothing to send
    requests: pl.DataFrame  # `REQUESTS`: each distinct request once, in the frame's order
    texts: Texts  # what each request says
    sizes: pl.DataFrame  # `SIZES`, of what is sent
    unsent: pl.DataFrame | None  # of each row with files, the `error` and `message` of what cannot be sent

    def results(
        self, answers: pl.DataFrame, places: pl.Series | None = None, *, simulated: bool = False
    ) -> pl.DataFrame:
        """Return the user's frame, same rows in the same order, with typed columns, `reply` and `error`.

        Columns of the frame that have such a name are renamed, as `Prompt.renamed` says.

        Parameters
        ----------
        answers : pl.DataFrame
            `key`, `reply`, `error`: at most one row per key.
        places : pl.Series, optional
            Of the result rows that are wanted; the default is all.
        simulated : bool
            Mark every row as a simulator's, so that no file made of them can pass for the real thing.
        """
        prompt, keys, unsent = self.texts.prompt, self.keys, self.unsent
        frame = self.frame.rename(prompt.renamed)
        if prompt.samples > 1 or places is not None:
            places = pl.int_range(keys.len(), eager=True) if places is None else places
            rows, keys = places // prompt.samples, keys.gather(places)
            frame, unsent = frame[rows], unsent if unsent is None else unsent[rows]
        if prompt.samples > 1 and places is not None:
            frame = frame.with_columns(sample=places.cast(pl.Int64) % prompt.samples + 1)
        known = answers.select("key", "reply", "error", found=pl.lit(value=True))
        joined = keys.to_frame().join(known, on="key", how="left", maintain_order="left")
        waiting = pl.col("key").is_not_null() & pl.col("found").is_null()
        columns = joined.select("reply", error=pl.when(waiting).then(pl.lit(NOT_SENT)).otherwise("error"))
        if unsent is not None:
            columns = columns.with_columns(error=pl.coalesce("error", unsent["error"]))
        if prompt.returns is not None:
            typed, broken = prompt.returns.decode(joined["reply"])
            columns = columns.with_columns(error=pl.coalesce("error", broken))
            columns = typed.hstack(columns.select("error") if prompt.returns.single else columns)
        if unsent is not None:
            columns = columns.with_columns(unsent["message"])
        return frame.hstack(columns.with_columns(simulated=True) if simulated else columns)


# ------------------------------------------------------------------------------ what a retry takes over


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
        returns, before, replies = prompt.returns, run.plan.compiled.prompt, run.job.replies()
        error = replies["error"]
        if _form(returns) != _form(before.returns) and error.null_count():
            refuse(
                "plan.retry(run, returns=...): the run's replies have another form and cannot be mixed "
                "with new ones. Leave returns= out, or ask all rows again: plan.replace(returns=...)."
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
        tried = rest.select("key", tried_at=pl.col("sent_at").dt.epoch("us"))
        known = pl.concat([kept.select("key", kept="key"), tried], how="diagonal")
        rows = run.job.work.keys.to_frame().join(known, on="key", how="left", maintain_order="left")
        tried_at, spent, earlier = rows["tried_at"], rest["key"], run.plan.compiled.kept
        if earlier is not None:
            tried_at = pl.select(pl.coalesce(tried_at, earlier.tried_at)).to_series()
            spent = pl.concat([earlier.spent, spent])
        return cls(rows["kept"], tried_at, spent, kept, typed)

    @property
    def open(self) -> pl.Series:
        """Numbers of the rows that are not taken over."""
        return self.keys.is_null().arg_true()

    def applied(self, keys: pl.Series) -> pl.Series:
        """Return the key of each row, given those that the requests of a plan have by themselves."""
        # When it failed is part of the key of a request that is sent again, so the same cell is a resume.
        again = (keys.is_in(self.spent.implode()) & self.keys.is_null()).fill_null(value=False).arg_true()
        names = zip(keys.gather(again), self.tried_at.gather(again), strict=True)
        own = keys.scatter(again, [key_of(f"{key}\0{at}") for key, at in names])
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


def key_of(text: str) -> str:
    """Return the hash by which a ledger knows a request."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def last_failures(attempts: pl.DataFrame, final: pl.DataFrame) -> pl.DataFrame:
    """Return the last attempt of each key that has no final one: rows that were given up."""
    failed = attempts.join(final.select("key"), on="key", how="anti", maintain_order="left")
    return failed.unique("key", keep="last", maintain_order=True)


def _check_retried(run: Run, prompt: Prompt, frame: pl.DataFrame) -> None:
    if not hasattr(run, "job"):
        kind = type(run).__name__
        refuse(f"plan.retry() takes a run of a plan, not a {kind}: run = await plan.run(client).")
    if run.state in {"starting", "running", "left"}:
        refuse(
            "The run is still going, so nobody knows yet which rows fail. Run its cell again, which also "
            "collects pending batches: run = await plan.run(client)."
        )
    before = run.job.work.frame
    asked = run.plan.compiled.prompt.contents(before)["content"]
    same = run.plan.samples == prompt.samples and prompt.contents(frame)["content"].equals(asked)
    if frame.height != before.height or not same:
        refuse(
            f"The run has {before.height:,} rows and the plan {frame.height:,}, or it asks something else: "
            "plan.retry() takes a run with the same texts in the same order, and the same samples=. Use "
            "run.plan.retry(run), or ask all rows: run = await plan.run(client)."
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
    msg = f"The frame cannot be read: {type(error).__name__}. frame.collect() shows the whole message."
    return PlanError(msg)


def unknown_column(name: str, schema: pl.Schema, subject: str) -> UnknownColumn:
    """Return the error that says which column is meant, and which there are."""
    there_are = f"The results have: {', '.join(schema)}."
    return UnknownColumn(f"{subject} names the column {name!r}.{nearest(name, schema)} {there_are}")
