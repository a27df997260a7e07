"""Images, PDFs and examples in requests of any client: taken, counted, billed as they were estimated."""

import base64
import json
import struct

import polars as pl
import pytest
from desks import HAIKU, HEADERS, NOW, OLD, cached, desk, form, message_of, request, text_of
from running import WIDE, a_plan, finished, simulator

import claudescale as cs
from claudescale.api import catalog
from claudescale.prompts.templates import source_of

WORDS = {"type": "text", "text": "What is broken?"}


def png(width, height, shade=0):
    """Return as much of an image as is looked at, and a byte that tells it from others."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + bytes([shade])


def pdf(pages, *, scanned=False):
    """Return as much of a PDF as is counted."""
    return b"%PDF-1.4 " + b"/Font " * (not scanned) + b"<< /Type /Page >>" * pages


def block(kind, data, media_type):
    """Return an image or a document in base64."""
    encoded = base64.b64encode(data).decode()
    return {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": encoded}}


def by(kind, **source):
    """Return an image or a document that is elsewhere, or a text."""
    return {"type": kind, "source": source}


def tokens_of(body, at=None):
    """Return the input tokens of a request, which the token counter counts too."""
    at = at or desk()
    counted = {name: value for name, value in body.items() if name != "max_tokens"}
    tokens = message_of(body, at)["usage"]["input_tokens"]
    assert at.count_tokens(NOW, json.dumps(counted).encode(), HEADERS) == {"input_tokens": tokens}
    return tokens


def tokens_with(*blocks, model=HAIKU):
    """Return the tokens that blocks add to a request."""
    return tokens_of(request([*blocks, WORDS], model=model)) - tokens_of(request([WORDS], model=model))


@pytest.mark.parametrize("model", [HAIKU, OLD])
@pytest.mark.parametrize(
    ("make", "data"),
    [
        (cs.image, png(1_024, 1_024)),
        (cs.image, png(3, 4)),
        (cs.image, png(4_000, 3_000)),
        (cs.image, b"GIF89a" + struct.pack("<HH", 200, 300)),
        (cs.pdf, pdf(3)),
        (cs.pdf, pdf(2, scanned=True)),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_file_takes_the_tokens_it_was_estimated_at(make, data, model):
    """In a reply's usage, by the token counter and in the plan the figure is the same."""
    part = make("file")
    estimate = source_of(part, data, catalog.model(model), "price")
    given = block(part.block, data, estimate.source["media_type"])
    assert tokens_with(given, model=model) == estimate.tokens


@pytest.mark.parametrize("make", [cs.image, cs.pdf])
@pytest.mark.parametrize("kind", ["url", "file_id"])
def test_a_file_nobody_has_seen_takes_the_assumed_tokens(make, kind):
    """Behind a URL or an id of the Files API it counts as the plan assumes."""
    part = make("file", kind=kind)
    estimate = source_of(part, "https://example.org/a", catalog.model(HAIKU), "price")
    assert tokens_with(by(part.block, **estimate.source)) == estimate.tokens > 1_000


def test_documents_of_text_count_as_text():
    """Plain text, or blocks of it, has no pages; an image among them counts as one."""
    plain = by("document", type="text", media_type="text/plain", data="word " * 100)
    written = {"type": "text", "text": "word " * 100}
    several = by("document", type="content", content=[written, block("image", png(28, 28), "image/png")])
    assert tokens_with(plain) == tokens_with(written) == tokens_with(several) - 1


def test_another_image_is_another_prefix_of_the_cache():
    """An image before the mark is read from the cache only where it is the same one."""
    at, found = desk(), []
    for shade in (1, 1, 2):
        image = block("image", png(280, 280, shade), "image/png")
        message = message_of(request([image, *cached("x")["system"], WORDS]), at, NOW + 60 * len(found))
        found.append(message["usage"]["cache_read_input_tokens"] > 100)
    assert found == [False, True, False]


def test_replies_to_images_differ_by_the_image():
    """With the same words, another image has another label, and the same image the same one again."""
    schema = {"type": "object", "properties": {"grade": {"enum": ["a", "b", "c"]}}, "required": ["grade"]}
    changes = {**form({**schema, "additionalProperties": False}), "thinking": {"type": "disabled"}}
    images = [block("image", png(28, 28, shade), "image/png") for shade in range(20)]
    once, again = (
        [text_of(message_of(request([one, WORDS], **changes))) for one in images] for _ in range(2)
    )
    assert once == again
    assert len(set(once)) == 3


def test_examples_are_counted():
    """Turns of the assistant before the last one count as any other text, live and by the counter."""
    turn, answer = {"role": "user", "content": "Late."}, {"role": "assistant", "content": "delivery " * 50}
    last = {"role": "user", "content": "Broken."}
    alone, after = request(messages=[last]), request(messages=[turn, answer, last])
    expected = (len(turn["content"]) + len(answer["content"])) / catalog.model(HAIKU).characters_per_token
    assert tokens_of(after) - tokens_of(alone) == pytest.approx(expected + 6, rel=0.15)


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_a_run_over_images_costs_what_its_plan_says(mode):
    """Twenty images of different sizes: the bill is within a tenth of what was counted before."""
    images = [png(300 + 60 * n, 900 - 30 * n, n) for n in range(20)]
    frame = pl.DataFrame({"photo": images, "note": [f"Parcel {n}." for n in range(20)]})
    prompt = [cs.image("photo"), "What is broken? {note}"]
    plan = a_plan(frame, prompt, mode=mode, returns=pl.Enum(["box", "lid", "nothing"]))
    with simulator(tier=WIDE, speed=600, batch_seconds=60) as api:
        client = api.client()
        plan = cs.wait(plan.count_tokens(client))
        run = finished(plan, client)
    totals = plan.compiled.totals
    dollars = totals.live_dollars if mode == "live" else totals.batch_dollars
    assert run.results["reply"].null_count() == 0
    assert run.attempts["input_tokens"].sum() == pytest.approx(totals.input_tokens, rel=0.1)
    assert run.bill["dollars"].sum() == pytest.approx(dollars, rel=0.1)
