"""A run over many images and PDFs: every row is answered, and the files are never in memory together."""

import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import anthropic
import polars as pl
import pytest
from running import WIDE, a_plan, finished

import claudescale as cs

STATUS = Path("/proc/self/status")
PROMPT = [cs.image("photo"), cs.pdf("file"), "What is broken? {note}"]
IMAGES, PDFS = 200, 50
SIDE = 240  # pixels, three bytes each: 170 KB an image, as noise does not compress
MEGABYTES = 50.0  # of memory at most; all files together, in base64, are more


def png(side, seed):
    """Return a picture of noise."""
    pixels, width = random.Random(seed).randbytes(3 * side * side), 3 * side
    rows = b"".join(b"\0" + pixels[start : start + width] for start in range(0, len(pixels), width))
    header, data = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), zlib.compress(rows, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(rest)) + kind + rest + struct.pack(">I", zlib.crc32(kind + rest))
        for kind, rest in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def pdf(pages, seed):
    """Return a text of so many pages."""
    words = random.Random(seed).randbytes(30_000).hex().encode()  # comments, which make it larger
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    text = b"<< /Length 29 >> stream\nBT /F1 12 Tf (Broken) Tj ET\nendstream"
    page = b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /Font << /F1 3 0 R >> >> >>"
    kids = b" ".join(b"%d 0 R" % (5 + number) for number in range(pages))
    tree = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (pages, kids)
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", tree, font, text, *[page] * pages]
    numbered = (b"%d 0 obj %s endobj\n" % pair for pair in enumerate(objects, 1))
    return b"%%PDF-1.4\n%%%s\n" % words + b"".join(numbered) + b"trailer << /Root 1 0 R >>\n%%EOF\n"


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """Return 200 rows, each with an image of its own and one of 50 PDFs of one to five pages."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(IMAGES):
        (folder / f"{number}.png").write_bytes(png(SIDE, number))
    for number in range(PDFS):
        (folder / f"{number}.pdf").write_bytes(pdf(1 + number % 5, number))
    rows = [
        (f"{folder}/{number}.png", f"{folder}/{number % PDFS}.pdf", "cracked") for number in range(IMAGES)
    ]
    return pl.DataFrame(rows, schema=["photo", "file", "note"], orient="row")


@pytest.fixture(scope="module")
def url():
    """Yield where a simulator listens that has a process, and so a memory, of its own."""
    names = ("requests", "input-tokens", "output-tokens")
    limits = [f"--{name}-per-minute={limit}" for name, limit in zip(names, WIDE, strict=True)]
    command = [sys.executable, "-m", "claudescale.simulator", "--speed=600", "--batch-seconds=60", *limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().split("ANTHROPIC_BASE_URL=")[1].split()[0]
        server.terminate()


def megabytes(what):
    """Return the memory of this process, now (VmRSS) or at most (VmHWM)."""
    return int(STATUS.read_text(encoding="ascii").split(f"{what}:")[1].split()[0]) / 1_024


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="memory is read as Linux tells it")
@pytest.mark.parametrize("mode", ["live", "batch"])
def test_a_run_over_many_files_holds_few_of_them(frame, url, mode):
    """All rows are answered once; at most some files are in memory; estimate and bill are printed."""
    client = anthropic.AsyncAnthropic(base_url=url, api_key="simulated")
    plan = a_plan(frame, PROMPT, mode=mode, concurrency=8)
    finished(plan.head(4), client)  # what is imported at the first run is no memory of files
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest so far is forgotten
    before = megabytes("VmRSS")
    estimate = plan.options.filter(mode=mode)["dollars"].item()
    run = finished(plan, client)
    most = megabytes("VmHWM") - before
    print(f"{mode}: estimated ${estimate:.4f}, billed ${run.counts.dollars:.4f}; {most:.0f} MB at most")
    assert run.results["error"].null_count() == run.results["reply"].count() == IMAGES
    assert run.attempts.height == IMAGES
    assert run.job.work.requests["bytes"].sum() > 1.2 * MEGABYTES * 1e6
    assert most < MEGABYTES
