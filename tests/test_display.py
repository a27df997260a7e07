"""How figures and cards read: units, digits, and data that can never be markup."""

import html.parser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudescale.views.card import Card, dollars, duration, span, tokens


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "$0"), (0.0000123, "$0.000012"), (0.0071, "$0.0071"), (0.0999, "$0.100"), (0.1, "$0.10"),
        (1.239, "$1.24"), (999.99, "$999.99"), (1_234.5, "$1,234"), (12_345_678, "$12,345,678"),
        (float("nan"), "?"), (float("inf"), "?"), (-0.5, "$-0.50"),
    ],
)  # fmt: skip
def test_dollars(value, shown):
    """Dollars have cents, or two significant digits below a cent; above a thousand cents do not matter."""
    assert dollars(value) == shown


@pytest.mark.parametrize(
    ("minutes", "shown"),
    [
        (0, "0 s"), (0.005, "0.3 s"), (0.5, "30 s"), (0.9999, "1 m 00 s"), (2.24, "2 m 14 s"),
        (59.999, "1 h 00 m"), (61, "1 h 01 m"), (60_000, "1,000 h 00 m"), (float("inf"), "?"),
    ],
)  # fmt: skip
def test_duration(minutes, shown):
    """A time has its two largest units."""
    assert duration(minutes) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (999, "999"), (999.7, "1 k"), (12_400, "12.4 k"), (999_999, "1 M"), (2_500_000_000, "2.5 G")],
)
def test_tokens(count, shown):
    """A count of tokens has three digits, and never an exponent."""
    assert tokens(count) == shown


@given(st.floats(0, 1e11))
def test_no_figure_has_an_exponent(value):
    """However large or small, people read digits."""
    for show in (dollars, duration, tokens):
        assert "e" not in show(value)


def test_span():
    """Two figures that read the same are told once."""
    assert (span("$1", "$2"), span("18 s", "18 s")) == ("$1 to $2", "18 s")


class _Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.shown = set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.shown += data


_CELLS = st.text(st.characters(exclude_categories=["C"]), max_size=12)


@given(_CELLS, st.lists(st.tuples(_CELLS, _CELLS), max_size=4), st.lists(_CELLS, max_size=2), _CELLS)
def test_a_card_shows_its_facts_and_nothing_else(title, rows, notes, following):
    """Whatever the texts are, the HTML is balanced, has only the tags of a card, and shows every text."""
    card = Card(title=title, header=("name", "value"), rows=rows, notes=notes, next=following)
    read = _Reader()
    read.feed(card.html())
    read.close()
    assert read.open == []
    assert read.tags <= {
        "div",
        "strong",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "small",
        "code",
        "span",
    }
    for text in (title, *notes, following, *(cell for row in rows for cell in row)):
        assert text in read.shown
    assert title in card.text()


def test_a_card_as_text_has_aligned_columns():
    """Plain text has the same facts as HTML, in columns, and no trailing blanks."""
    card = Card(
        title="T", header=("", "a"), rows=[("first", "1"), ("2nd", "1,000")], notes=["n"], next="go()"
    )
    assert card.text() == "T\n             a\n  first      1\n  2nd    1,000\nn\ngo()"
