"""Prompts to the text of each row: columns readable, braces literal, mistakes explained."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import polars as pl
import pytest

from claudescale.errors import BadTemplate, PlanError, UnknownColumn
from claudescale.prompts.templates import text_of


def rendered(prompt, frame):
    content, length, _ = text_of(prompt, frame.schema)
    found = frame.select(content=content, length=length)
    assert found["length"].equals(found["content"].str.len_chars(), check_names=False)
    return found["content"].to_list()


MANY = {f"column_{number}": pl.String for number in range(1_000)}
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).replace(tzinfo=None)


@pytest.mark.parametrize(
    ("cells", "dtype", "texts"),
    [
        (["a", None], pl.String, ["a", None]),
        ([255], pl.UInt8, ["255"]),
        ([0.1, 1e20, float("nan")], pl.Float64, ["0.1", "1e+20", "NaN"]),
        ([True, False], pl.Boolean, ["true", "false"]),
        ([date(2026, 1, 31)], pl.Date, ["2026-01-31"]),
        (
            [NOON, NOON.replace(microsecond=500_000)],
            pl.Datetime,
            ["2026-01-31 12:00:00", "2026-01-31 12:00:00.500"],
        ),
        ([NOON.replace(tzinfo=UTC)], pl.Datetime("us", "Europe/Berlin"), ["2026-01-31 13:00:00+01:00"]),
        ([time(9, 30)], pl.Time, ["09:30:00"]),
        ([timedelta(days=1, seconds=3)], pl.Duration, ["1d 3s"]),
        ([Decimal("1.50")], pl.Decimal(10, 2), ["1.50"]),
        (["b"], pl.Categorical, ["b"]),
        ([["a", '"'], [], None], pl.List(pl.String), ['["a","\\""]', "[]", None]),
        ([[1, 2]], pl.Array(pl.Int64, 2), ["[1,2]"]),
        ([{"a": 1, "b": None}, None], pl.Struct({"a": pl.Int64, "b": pl.Date}), ['{"a":1,"b":null}', None]),
        ([[{"a": date(2026, 1, 31)}]], pl.List(pl.Struct({"a": pl.Date})), ['[{"a":"2026-01-31"}]']),
    ],
    ids=str,
)
def test_a_column_of_any_type_reads_well(cells, dtype, texts):
    """Cells of each Polars type become text a reader expects, and null stays null."""
    assert rendered("{column}", pl.DataFrame({"column": pl.Series(cells, dtype=dtype)})) == texts


@pytest.mark.parametrize("name", ["*", "^.*$", "a.b", "a[0]", "a:b", "a!r", "\u00e9\U0001f600", " "])
def test_a_column_of_any_name_can_be_named(name):
    """Names that Polars reads as patterns, or str.format as something else, are names here."""
    frame = pl.DataFrame({name: ["cell"], "other": ["wrong"]})
    assert rendered(f"<{{{name}}}>", frame) == ["<cell>"]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{{text}}}", "{cell}"),
        ("{{text}} {text}", "{text} cell"),
        ('{{"label": "{text}"}}', '{"label": "cell"}'),
        ("{text}{text}", "cellcell"),
        ("{text}}}{{", "cell}{"),
    ],
)
def test_doubled_braces_are_text(template, text):
    """Two braces are one brace of text, as in str.format."""
    frame = pl.DataFrame({"text": ["cell"]})
    assert rendered(template, frame) == [text]
    assert template.format(text="cell") == text


@pytest.mark.parametrize(
    ("template", "error", "words"),
    [
        ("Reply with {", BadTemplate, r"single '\{' at character 12 of line 1.*\{\{ and \}\}"),
        ("first\n}", BadTemplate, r"single '\}' at character 1 of line 2"),
        ('{"label": "a"} {text}', BadTemplate, r"in JSON, double it"),
        ('{"a": {"b": 1}}', BadTemplate, r"in JSON, double it"),
        ("{}", BadTemplate, "no column name"),
        ("{text.upper()}", BadTemplate, r"no attributes.*pl\.col\('text'\)"),
        ("{text:>10}", BadTemplate, "no formats"),
        ("{text!r}", BadTemplate, "no formats"),
        ("{txet}", UnknownColumn, r"'txet'.* Did you mean 'text'\? Columns: text, rating"),
        ("constant", BadTemplate, "names no column"),
        ("", BadTemplate, "names no column"),
        ("{{text}}", BadTemplate, "names no column"),
        (7, BadTemplate, "The prompt is of type int"),
        ("\ud83d {text}", PlanError, "lone surrogate.* position 0"),
    ],
)
def test_a_template_that_cannot_be_read_says_what_to_type(template, error, words):
    """Each mistake is named with its place and with what to write instead."""
    with pytest.raises(error, match=words) as raised:
        text_of(template, pl.Schema({"text": pl.String, "rating": pl.Int64} | MANY))
    assert len(str(raised.value)) < 600  # of a wide frame not all columns are listed


@pytest.mark.parametrize(
    "dtype", [pl.Binary, pl.Object, pl.Struct({"a": pl.List(pl.Binary)}), pl.Array(pl.Binary, 2)], ids=str
)
def test_what_is_no_text_is_refused(dtype):
    """Bytes and objects, at any depth, are refused before Polars meets them."""
    with pytest.raises(BadTemplate, match=r"The column 'data' .* not text"):
        text_of("{data}", pl.Schema({"data": dtype}))


def test_expressions_give_the_text():
    """A Polars expression is the prompt; labels count as text, a constant goes to every row."""

    def shout(texts):  # a function of the user's that takes no nulls
        return pl.Series([text.upper() for text in texts])

    frame = pl.DataFrame(
        {"text": ["a", None], "n": [1, 2], "kind": pl.Series(["x", "y"], dtype=pl.Enum(["x", "y"]))}
    )
    assert rendered(pl.col("kind").map_batches(shout, return_dtype=pl.String), frame) == ["X", "Y"]
    assert rendered(pl.format("{}-{}", "text", "n"), frame) == ["a-1", None]
    assert rendered(pl.col("kind"), frame) == ["x", "y"]
    assert rendered(pl.col("text").shift(1), frame) == [None, "a"]
    constant, *_ = text_of(pl.lit("same"), frame.schema)
    assert frame.with_columns(content=constant)["content"].to_list() == ["same", "same"]


@pytest.mark.parametrize(
    ("expression", "error", "words"),
    [
        (pl.col("txet"), UnknownColumn, r"'txet'.* Did you mean 'text'\?"),
        (pl.col("n"), BadTemplate, r"gives Int64.*\.cast\(pl\.String\)"),
        (pl.all(), BadTemplate, "gives String, Int64"),
        (pl.col("text").first(), BadTemplate, "one per row"),
        (pl.col("text").filter(pl.col("n") > 1), BadTemplate, "one per row"),
        (pl.col("text") + pl.col("n").dt.year(), BadTemplate, "does not fit the frame"),
    ],
    ids=str,
)
def test_an_expression_that_gives_no_text_per_row_is_refused(expression, error, words):
    """An expression of a wrong type, height or column is refused from the schema alone."""
    with pytest.raises(error, match=words):
        text_of(expression, pl.Schema({"text": pl.String, "n": pl.Int64}))
