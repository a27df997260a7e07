"""A run over many images and PDFs: every row is answered, and the files are never all in memory."""

import random
import struct
import subprocess
import sys
from pathlib import Path

import anthropic
import polars as pl
import pytest
from running import WIDE, a_plan, finished

import claudescale as cs

STATUS = Path("/proc/self/status")
PROMPT = [cs.image("photo"), cs.pdf("file"), "What is broken? {note}"]
IMAGES, PDFS = 200, 50
MEGABYTES = 50.0  # of memory at most; all files together, in base64, are more


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """Return 200 rows, each with its own image and one of 50 PDFs of one to five pages."""
    folder, noise = tmp_path_factory.mktemp("files"), random.Random(1)
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 240, 240) + b"\x08\x02"
    rows = []
    for number in range(IMAGES):
        image, pdf = folder / f"{number}.png", folder / f"{number % PDFS}.pdf"
        image.write_bytes(head + noise.randbytes(172_800))
        if number < PDFS:
            pages = b"<< /Type /Page /Font 1 >>" * (1 + number % 5)
            pdf.write_bytes(b"%PDF-1.4\n%" + noise.randbytes(30_000).hex().encode() + pages)
        rows.append((str(image), str(pdf), "cracked"))
    return pl.DataFrame(rows, schema=["photo", "file", "note"], orient="row")


@pytest.fixture(scope="module")
def url():
    """Yield the address of a simulator that has a process, and so a memory, of its own."""
    names = ("requests", "input-tokens", "output-tokens")
    limits = [f"--{name}-per-minute={limit}" for name, limit in zip(names, WIDE, strict=True)]
    command = [sys.executable, "-m", "claudescale.simulator", "--speed=2000", "--batch-seconds=60", *limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().split("ANTHROPIC_BASE_URL=")[1].split()[0]
        server.terminate()


def megabytes(what):
    """Return the memory of this process, now (VmRSS) or at its highest (VmHWM)."""
    return int(STATUS.read_text(encoding="ascii").split(f"{what}:")[1].split()[0]) / 1_024


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="memory is read as Linux tells it")
@pytest.mark.parametrize("mode", ["live", "batch"])
def test_a_run_over_many_files_holds_few_of_them(frame, url, mode):
    """All rows are answered once, at about the estimate; only a few files are in memory at once."""
    client = anthropic.AsyncAnthropic(base_url=url, api_key="simulated")
    plan = a_plan(frame, PROMPT, mode=mode, concurrency=8)
    finished(plan.head(4), client)  # the imports of a first run are not memory of files
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the highest so far
    before = megabytes("VmRSS")
    run = finished(plan, client)
    assert megabytes("VmHWM") - before < MEGABYTES
    assert run.results["error"].null_count() == run.results["reply"].count() == IMAGES
    assert run.attempts.height == IMAGES
    assert run.job.work.requests["bytes"].sum() > 1.2 * MEGABYTES * 1e6
    estimate = plan.options.filter(mode=mode)["dollars"].item()
    assert run.counts.dollars == pytest.approx(estimate, rel=0.1)
