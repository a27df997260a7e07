"""Images and PDFs of rows: the right bytes in the body, a key by the content, tokens by size and pages."""

import base64
import json
import struct
import zlib

import polars as pl
import pytest
import vl_convert
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from anthropic.types.messages.batch_create_params import Request
from pydantic import TypeAdapter
from running import a_plan

import claudescale as cs
from claudescale.api import catalog
from claudescale.errors import FileChanged, PlanError, RequestTooLarge
from claudescale.prompts.requests import compile_prompt
from claudescale.prompts.templates import MEDIA, source_of

HAIKU, OLD = catalog.model("claude-haiku-5-5"), catalog.model("claude-haiku-4-5")
LIVE, BATCH = TypeAdapter(MessageCreateParamsNonStreaming), TypeAdapter(Request)
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}"><text y="20">Broken</text></svg>'


def png(width, height, more=b""):
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02" + more


def webp(kind, rest):
    return b"RIFF\0\0\0\0WEBP" + kind + b"\0\0\0\0" + rest + b"\0" * 8


def packed(pages):
    """Return a PDF that keeps its pages in a compressed stream, as most do since 1.5."""
    objects = zlib.compress(b"<< /Type /Pages >> << /Font 1 >>" + b"<< /Type /Page >>" * pages)
    return b"%PDF-1.7\n1 0 obj << /Type /ObjStm /N 9 >> stream\n" + objects + b"\nendstream"


JPEG = b"\xff\xd8\xff\xe1\0\x06Exif\xff\xc2\0\x11\x08" + struct.pack(">HH", 300, 200)
VP8 = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 200, 300)
VP8L = b"\x2f" + struct.pack("<I", 199 | 299 << 14)
SCANS = b"%PDF-1.4 << /Type /Pages >> << /Type /Page >> << /Type/Page/A 1 >>"


@pytest.mark.parametrize(
    ("make", "data", "model", "media_type", "tokens"),
    [
        (cs.image, png(1024, 1024), HAIKU, "image/png", 1_369),  # as Anthropic counted, on 4.5 and on 5.5
        (cs.image, png(1024, 1024), OLD, "image/png", 1_369),
        (cs.image, png(4000, 3000), OLD, "image/png", 1_600),  # scaled down: about so many, at most
        (cs.image, png(4000, 3000), HAIKU, "image/png", 3_500),
        (cs.image, JPEG, HAIKU, "image/jpeg", 8 * 11),
        (cs.image, b"GIF89a" + struct.pack("<HH", 200, 300), HAIKU, "image/gif", 8 * 11),
        (cs.image, webp(b"VP8 ", VP8), HAIKU, "image/webp", 88),
        (cs.image, webp(b"VP8L", VP8L), HAIKU, "image/webp", 88),
        (cs.image, webp(b"VP8X", b"\0\0\0\0\xc7\0\0\x2b\x01\0"), HAIKU, "image/webp", 88),
        (cs.image, vl_convert.svg_to_png(SVG.format(200, 300)), HAIKU, "image/png", 88),
        (cs.image, vl_convert.svg_to_jpeg(SVG.format(200, 300)), HAIKU, "image/jpeg", 88),
        (cs.pdf, packed(3), HAIKU, "application/pdf", 3 * 2_300),
        (cs.pdf, SCANS, HAIKU, "application/pdf", 2 * 1_600),
        (cs.pdf, vl_convert.svg_to_pdf(SVG.format(200, 300)), HAIKU, "application/pdf", 1_600),
    ],
    ids=lambda value: str(value)[:12],
)  # fmt: skip
def test_media_type_and_tokens_by_the_content(make, data, model, media_type, tokens):
    """The first bytes tell the type; width and height, or the pages, tell the tokens."""
    found = source_of(make("file"), data, model, "price")
    assert (found.source["media_type"], found.tokens) == (media_type, tokens)


@pytest.fixture
def files(tmp_path):
    """Return a frame whose rows hold the same image in every way, and the bytes of it and of a PDF."""
    photo, paper = png(280, 280, b"pixels"), packed(2)
    for name, data in (
        ("a.png", photo),
        ("copy.png", photo),
        ("b.png", png(280, 280, b"other")),
        ("a.pdf", paper),
    ):
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in ("a.png", "copy.png", "b.png", "none.png", "a.pdf")]
    cells = [*paths, "https://example.org/a.png", "http://example.org/a.png", str(tmp_path), None]
    return pl.DataFrame({"photo": cells, "file": paper, "note": "cracked"}), photo, paper


PROMPT = [cs.image("photo"), cs.pdf("file"), "What is broken? {note}"]


def work_of(frame, prompt=PROMPT, **options):
    return compile_prompt(prompt, frame.schema, model=HAIKU, **options).work(frame, "api")


def test_each_row_has_its_files_in_the_body(files):
    """The body is what the SDK's types take, live and in a batch, with the bytes of the files in base64."""
    frame, photo, paper = files
    work = work_of(frame)
    bodies = [json.loads(body) for body in work.texts.bodies(work.requests["row"])]
    for body in bodies:
        LIVE.validate_python(body)
        BATCH.validate_python({"custom_id": "a", "params": body})
    image, document, text = bodies[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is broken? cracked"}
    assert (image["type"], image["source"]["media_type"]) == ("image", "image/png")
    assert (document["type"], document["source"]["media_type"]) == ("document", "application/pdf")
    assert [base64.b64decode(block["source"]["data"]) for block in (image, document)] == [photo, paper]
    linked = bodies[2]["messages"][0]["content"][0]
    assert linked == {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}


def test_the_key_depends_on_the_content(files):
    """The same bytes under another name are the same request; other bytes, or a URL, are another."""
    frame, photo, _ = files
    keys = work_of(frame).keys
    assert keys[0] == keys[1]
    assert keys.drop_nulls().n_unique() == 3
    as_bytes = work_of(frame.with_columns(photo=pl.lit(photo)))
    assert as_bytes.keys[0] == keys[0]


def test_size_and_tokens_count_the_files(files):
    """`bytes` is the length of the body as sent, base64 included; the price counts files as the run does."""
    frame, _, _ = files
    work = work_of(frame)
    assert work.requests["bytes"].to_list() == [len(body) for body in work.texts.bodies(work.requests["row"])]
    characters = len("What is broken? cracked") / HAIKU.characters_per_token
    known = 100 + 2 * MEDIA["page_tokens"] + characters + 10
    assert work.requests["estimated_tokens"][0] == pytest.approx(known, abs=1)
    most = work.requests["most_tokens"][0]  # what a budget sets aside: not a token for each byte of a file
    assert known < most < 2 * (100 + 2 * MEDIA["page_tokens"]) + 1_000
    sizes = work.texts.prompt.sizes(frame.lazy()).drop_nulls()
    assert sizes["rows"].sum() == work.sizes.drop_nulls()["rows"].sum() == 4
    assert sizes["characters"].to_list() == work.sizes.drop_nulls()["characters"].to_list()
    assert "5 with a null or a file that cannot be read not sent" in repr(a_plan(frame, PROMPT))


def test_what_cannot_be_read_is_an_error_of_its_row(files):
    """It is not sent, and the results say why; a null says nothing, as a null in a text does."""
    frame, _, _ = files
    found = work_of(frame).results(pl.DataFrame(schema=dict.fromkeys(("key", "reply", "error"), pl.String)))
    errors = ["file_not_found", "file_type_unknown", "not_sent", "url_not_https", "file_unreadable", None]
    assert found["error"].to_list() == [*["not_sent"] * 3, *errors]
    assert found["message"][3:5].to_list() == [
        "There is no such file.",
        "It is not a PNG, JPEG, GIF or WebP. It is a PDF, so use cs.pdf(...).",
    ]
    assert found["message"].null_count() == 5
    for data, error in (
        (png(9_000, 2), "image_too_large"),
        (png(9, 2) + bytes(4_000_000), "image_too_large"),
        (png(1, 1)[:20], "file_damaged"),
        (b"", "file_type"),
    ):
        frame = pl.DataFrame({"photo": [data]})
        (name,) = work_of(frame, [cs.image("photo")]).unsent["error"]
        assert name.startswith(error)


def test_files_are_read_when_their_row_is_sent(files, tmp_path):
    """Nothing is kept of them before; one that has changed since the keys were made is not sent."""
    frame, _, _ = files
    work = work_of(frame)
    (tmp_path / "b.png").write_bytes(png(280, 280, b"changed"))
    bodies = work.texts.bodies(work.requests["row"])
    assert next(bodies).startswith(b'{"model"')
    with pytest.raises(FileChanged, match="has changed"):
        next(bodies)


def test_a_row_whose_files_are_over_32_mb_is_named():
    """They count as they are sent, in base64."""
    small, large = b"%PDF-1.4 /Type /Page", b"%PDF-1.4 /Type /Page" + bytes(24_000_000)
    frame = pl.DataFrame({"file": [small, large]})
    with pytest.raises(RequestTooLarge, match=r"row 1 .* 32,000,\d{3} bytes.*Make its files smaller"):
        work_of(frame, [cs.pdf("file")])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "names no column"),
        (["What is it?"], "names no column"),
        ([cs.image("foto")], "'foto'.* Did you mean 'photo'"),
        ([cs.image("stars")], "'stars' is Int64"),
        ([cs.image("raw", kind="path")], "'raw' is Binary"),
        ([cs.image("photo"), 5], "contains a int"),
    ],
)
def test_a_list_that_cannot_be_read_says_what_to_type(prompt, words):
    """Each mistake is found from the schema alone."""
    schema = pl.Schema({"photo": pl.String, "stars": pl.Int64, "raw": pl.Binary})
    with pytest.raises(PlanError, match=words):
        compile_prompt(prompt, schema, model=HAIKU)
    with pytest.raises(PlanError, match="kind='jpg' is not one of 'path', 'url', 'file_id'"):
        cs.image("photo", kind="jpg")


def test_files_that_cost_as_text_or_were_not_seen_are_noted():
    """Base64 in a template is noted, and so are URLs, whose tokens are assumed."""
    frame = pl.DataFrame({"photo": [base64.b64encode(png(9, 9)).decode()]})
    (note,) = a_plan(frame, "What is in {photo}?").compiled.prompt.notes
    assert "cs.image('photo')" in note
    (note,) = a_plan(
        pl.DataFrame({"photo": ["https://example.org/a"]}), [cs.image("photo")]
    ).compiled.prompt.notes
    assert "assumed" in note
