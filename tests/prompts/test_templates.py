"""A row's prompt: readable columns, literal braces, explained mistakes, and files by their content."""

import base64
import json
import struct
import subprocess
import sys
import tracemalloc
import zlib
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import anthropic
import polars as pl
import pytest
import vl_convert
from running import a_plan, finished

import claudescale as cs
from claudescale.api import catalog
from claudescale.errors import BadTemplate, FileChanged, UnknownColumn
from claudescale.prompts.requests import compile_prompt
from claudescale.prompts.templates import MEDIA, source_of, text_of

HAIKU, OLD = catalog.model("claude-haiku-5-5"), catalog.model("claude-haiku-4-5")
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).replace(tzinfo=None)


def rendered(prompt, frame):
    return frame.select(content=text_of(prompt, frame.schema).content)["content"].to_list()


CELLS = [
    (["a", None], pl.String, ["a", None]), ([True], pl.Boolean, ["true"]), (["b"], pl.Enum(["b"]), ["b"]),
    ([NOON.replace(microsecond=500_000)], pl.Datetime, ["2026-01-31 12:00:00.500"]),
    ([NOON.replace(tzinfo=UTC)], pl.Datetime("us", "Europe/Berlin"), ["2026-01-31 13:00:00+01:00"]),
    ([time(9, 30)], pl.Time, ["09:30:00"]), ([timedelta(days=1, seconds=3)], pl.Duration, ["1d 3s"]),
    ([["a", '"'], [], None], pl.List(pl.String), ['["a","\\""]', "[]", None]),
    ([{"a": 1, "b": None}, None], pl.Struct({"a": pl.Int64, "b": pl.Date}), ['{"a":1,"b":null}', None]),
    ([[{"a": date(2026, 1, 31)}]], pl.List(pl.Struct({"a": pl.Date})), ['[{"a":"2026-01-31"}]']),
]  # fmt: skip
WRONG = [  # besides those of the golden errors
    ('{"label": "a"} {text}', UnknownColumn, "in JSON, double"), ("{data}", BadTemplate, "'data'.* not text"),
    (pl.col("text") + pl.col("rating").dt.year(), BadTemplate, "does not fit the frame"),
    ([cs.image("foto")], UnknownColumn, "Did you mean 'photo'"), (["Hi"], BadTemplate, "names no column"),
    ([cs.image("photo"), 5], BadTemplate, "type int"), ([cs.image("rating")], BadTemplate, "column is Int64"),
    ([cs.image("raw", kind="path")], BadTemplate, r"cs.image\('raw', kind='path'\): the column is Binary"),
]  # fmt: skip


@pytest.mark.parametrize(("cells", "dtype", "texts"), CELLS, ids=str)
def test_a_column_of_any_type_reads_well(cells, dtype, texts):
    """Cells of each Polars type become the text a reader expects, and null stays null."""
    assert rendered("{column}", pl.DataFrame({"column": pl.Series(cells, dtype=dtype)})) == texts


@pytest.mark.parametrize("name", ["*", "^.*$", "a[0]", "a!r", " "])
def test_a_column_of_any_name_can_be_named_and_doubled_braces_are_text(name):
    """Names that look like Polars patterns or str.format syntax are plain names here."""
    frame = pl.DataFrame({name: ["cell"], "other": ["wrong"]})
    template = '<{x}> {{{x}}} {{"label": "{x}"}} {x}{x}}}{{ {{x}}'
    (text,) = rendered(template.replace("x", name), frame)
    assert text == f'<cell> {{cell}} {{"label": "cell"}} cellcell}}{{ {{{name}}}'


@pytest.mark.parametrize(("prompt", "error", "words"), WRONG)
def test_a_prompt_that_cannot_be_read_says_what_to_type(prompt, error, words):
    """Each mistake is found from the schema alone and named with the correct form."""
    columns = {"text": pl.String, "rating": pl.Int64, "photo": pl.String, "raw": pl.Binary}
    many = {f"column_{number}": pl.String for number in range(1_000)}
    with pytest.raises(error, match=words) as raised:
        compile_prompt(prompt, pl.Schema({**columns, "data": pl.List(pl.Binary), **many}), model=HAIKU)
    assert len(str(raised.value)) < 600  # a wide frame does not list all its columns


def test_expressions_give_the_text():
    """A Polars expression is the prompt; it may look at other rows, and a constant goes to every row."""

    def shout(texts):  # a user's function that does not accept nulls
        return pl.Series([text.upper() for text in texts])

    frame = pl.DataFrame({"text": ["a", None], "kind": pl.Series(["x", "y"], dtype=pl.Enum(["x", "y"]))})
    assert rendered(pl.col("kind").map_batches(shout, return_dtype=pl.String), frame) == ["X", "Y"]
    assert rendered(pl.col("text").shift(1), frame) == [None, "a"]
    constant = text_of(pl.lit("same"), frame.schema).content
    assert frame.with_columns(content=constant)["content"].to_list() == ["same", "same"]


# images and PDFs

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="300"><text y="20">Broken</text></svg>'


def png(width, height, more=b""):
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02" + more


def webp(kind, rest):
    return b"RIFF\0\0\0\0WEBP" + kind + b"\0\0\0\0" + rest + b"\0" * 8


def packed(pages):
    """Return a PDF that keeps its pages in a compressed stream, as most do since PDF 1.5."""
    objects = zlib.compress(b"<< /Type /Pages >> << /Font 1 >>" + b"<< /Type /Page >>" * pages)
    return b"%PDF-1.7\n1 0 obj << /Type /ObjStm /N 9 >> stream\n" + objects + b"\nendstream"


VP8 = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 200, 300)
VP8L = b"\x2f" + struct.pack("<I", 199 | 299 << 14)
SCANS = b"%PDF-1.4 << /Type /Pages >> << /Type /Page >> << /Type/Page/A 1 >>"
FILES = [
    (cs.image, png(1024, 1024), HAIKU, "image/png", 1_369),  # as counted by Anthropic
    (cs.image, png(4000, 3000), HAIKU, "image/png", 3_500),
    (cs.image, png(4000, 3000), OLD, "image/png", 1_600),  # scaled down: about this many, at most
    (cs.image, webp(b"VP8 ", VP8), HAIKU, "image/webp", 88),
    (cs.image, b"GIF89a" + struct.pack("<HH", 200, 300), HAIKU, "image/gif", 88),
    (cs.image, webp(b"VP8L", VP8L), HAIKU, "image/webp", 88),
    (cs.image, webp(b"VP8X", b"\0\0\0\0\xc7\0\0\x2b\x01\0"), HAIKU, "image/webp", 88),
    (cs.image, vl_convert.svg_to_jpeg(SVG), HAIKU, "image/jpeg", 88),
    (cs.pdf, packed(3), HAIKU, "application/pdf", 6_900), (cs.pdf, SCANS, HAIKU, "application/pdf", 3_200),
    (cs.pdf, vl_convert.svg_to_pdf(SVG), HAIKU, "application/pdf", 1_600),
]  # fmt: skip


@pytest.mark.parametrize(("make", "data", "model", "media_type", "tokens"), FILES)
def test_media_type_and_tokens_by_the_content(make, data, model, media_type, tokens):
    """The first bytes give the type; width and height, or the pages, give the tokens."""
    source = source_of(make("file"), data, model, keyed=False)
    assert (source.source["media_type"], source.tokens) == (media_type, tokens)


PHOTO, PAPER = png(280, 280, b"pixels"), packed(2)
PROMPT = [cs.image("photo"), cs.pdf("file"), "What is broken? {note}"]


@pytest.fixture
def frame(tmp_path):
    """Return a frame whose rows hold the same image in every supported form."""
    files = {"a.png": PHOTO, "copy.png": PHOTO, "b.png": png(280, 280, b"other"), "a.pdf": PAPER}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in ("a.png", "copy.png", "b.png", "none.png", "a.pdf")]
    cells = [*paths, "https://example.org/a.png", str(tmp_path), None]
    return pl.DataFrame({"photo": cells, "file": PAPER, "note": "cracked"})


def work_of(frame, prompt=PROMPT, **options):
    return compile_prompt(prompt, frame.schema, model=HAIKU, **options).work(frame, "api")


def test_each_row_has_its_files_in_the_body(frame):
    """The body has the files' bytes in base64; `bytes` is its length; the price counts them as well."""
    work = work_of(frame)
    bodies = list(work.bodies(work.requests["row"]))
    assert work.requests["bytes"].to_list() == [len(body) for body in bodies]
    image, document, text = json.loads(bodies[0])["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is broken? cracked"}
    assert [base64.b64decode(block["source"]["data"]) for block in (image, document)] == [PHOTO, PAPER]
    known = 100 + 2 * MEDIA["page_tokens"] + len(text["text"]) / HAIKU.characters_per_token + 10
    assert work.requests["estimated_tokens"][0] == pytest.approx(known, abs=1)
    most = work.requests["most_tokens"][0]  # what a budget reserves: not a token for each byte of a file
    assert known < most < 2 * known + 1_000
    keys = work.keys  # the same bytes under another name keep the key; other bytes, or a URL, change it
    assert keys[0] == keys[1] == work_of(frame.with_columns(photo=pl.lit(PHOTO))).keys[0]
    assert keys.drop_nulls().n_unique() == 3
    priced, sizes = work.prompt.sizes(frame.lazy()).drop_nulls(), work.sizes.drop_nulls()
    assert priced.select("characters", "rows").equals(sizes.select("characters", "rows"))


def test_what_cannot_be_read_is_an_error_of_its_row(frame):
    """It is not sent, and the results say why; a null sends nothing, as a null in a text does."""
    found = work_of(frame).results(pl.DataFrame(schema=dict.fromkeys(("key", "reply", "error"), pl.String)))
    errors = ["file_not_found", "file_unreadable", "not_sent", "file_unreadable", None]
    assert found["error"].to_list() == [*["not_sent"] * 3, *errors]
    words = ["There is no such file.", "The file cannot be read: it is not a PNG, JPEG, GIF or WebP."]
    assert found["message"][3:5].to_list() == words
    assert found["message"].null_count() == 5
    assert "4 with a null or a file that cannot be read not sent" in repr(a_plan(frame, PROMPT))
    damaged = pl.DataFrame({"photo": [png(1, 1)[:20], b""]})
    assert work_of(damaged, [cs.image("photo")]).unsent["error"].to_list() == ["file_unreadable"] * 2


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(png(280, 280, b"changed"))])
def test_files_are_read_when_their_row_is_sent(frame, tmp_path, change):
    """None is held in memory before; one that changed or vanished after the keys were made is not sent."""
    work = work_of(frame)
    change(tmp_path / "b.png")
    bodies = work.bodies(work.requests["row"])
    assert next(bodies).startswith(b'{"model"')
    with pytest.raises(FileChanged, match="has changed"):
        next(bodies)


IMAGES = 200
MEGABYTES = 50.0  # of memory at most; all files together, in base64, are more


@pytest.mark.slow
def test_a_run_over_many_files_holds_few_of_them(tmp_path):
    """All rows are answered once, at about the estimate; only a few files are in memory at once."""
    command = [sys.executable, "-m", "claudescale.simulator", "--speed=2000", "--batch-seconds=60"]
    photos = [tmp_path / f"{number}.png" for number in range(IMAGES)]
    for number, photo in enumerate(photos):
        photo.write_bytes(png(240, 240, bytes([number]) * 300_000))
    frame = pl.DataFrame({"photo": map(str, photos), "file": PAPER, "note": "cracked"})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # with a memory of its own
        try:
            url = server.stdout.readline().split("ANTHROPIC_BASE_URL=")[1].split()[0]
            client = anthropic.AsyncAnthropic(base_url=url, api_key="simulated")
            for mode in ("live", "batch"):
                plan = a_plan(frame, PROMPT, mode=mode, concurrency=8)
                finished(plan.head(4), client)  # the imports of a first run are not memory of files
                tracemalloc.start()
                run = finished(plan, client)
                assert tracemalloc.get_traced_memory()[1] < MEGABYTES * 1e6
                tracemalloc.stop()
                assert run.results["error"].null_count() == run.results["reply"].count() == IMAGES
                assert run.attempts.height == IMAGES
                assert run.job.work.requests["bytes"].sum() > 1.2 * MEGABYTES * 1e6
                estimate = plan.options.filter(mode=mode)["dollars"].item()
                assert run.counts.dollars == pytest.approx(estimate, rel=0.1)
        finally:
            server.terminate()
