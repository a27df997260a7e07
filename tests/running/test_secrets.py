"""Keys and texts stay private, and so do the files with them."""

import logging
import os
import re
import stat
import traceback
from contextlib import closing, suppress
from pathlib import Path

import polars as pl
import pytest
from canned import Breaker, error
from running import a_plan, finished, quick

import claudescale as cs
from claudescale.ledger.store import Store

KEY = "sk-ant-api03-not_a_real_key_0123456789abcdefXYZ"
BARE = "7f3c1bd09e8a4c55b1f0d2a96e77aa10"  # for a gateway, in no known form


def values_of(error):
    """Return what a traceback would show of our own frames, local values included, and of its causes."""
    found = [str(error), repr(error)]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if Path(cs.__file__).parent in Path(frame.f_code.co_filename).parents:
            for name, value in frame.f_locals.items():
                with suppress(AttributeError):  # of an object not yet created
                    found.append(f"{name}={value!r}")
    for cause in (error.__cause__, error.__context__):
        found += values_of(cause) if cause is not None else []
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "key", "status"), [("live", BARE, 401), ("batch", KEY, 500), ("hybrid", KEY, 500)]
)
def test_keys_and_texts_are_not_shown(tmp_path, mode, key, status, caplog):
    """Neither is in logs at DEBUG, errors or cards; no key is in tracebacks, frames or the ledger file."""
    for name in (None, "anthropic", "httpx2", "httpcore2", "aiohttp"):
        caplog.set_level(logging.DEBUG, logger=name)

    words = error("api_error", f"bad key {key}, {key}!")

    def change(call):
        return (status, {}, words) if call.number <= 1 and call.name != "other" else None

    more = {"deadline": 600} if mode == "hybrid" else {}
    frame = pl.DataFrame({"text": [f"my diagnosis {n} is private" for n in range(6)]})
    plan = a_plan(frame, "Confidential: {text}", system="Hidden system", mode=mode, budget=1.0, **more)
    with quick() as api, Breaker(api.url, change) as breaker:
        client = api.client(api_key=key, base_url=breaker.url)
        held, shown = [repr(client)], []
        try:
            first = finished(plan, client, ledger=tmp_path / "l")
        except cs.RunStopped as stopped:
            held += values_of(stopped)
            shown += [str(stopped), repr(stopped)]
            first = stopped.run
        again = finished(plan, api.client(api_key=key), ledger=tmp_path / "l")
        assert again.results["reply"].null_count() == 0
        with cs.Ledger(tmp_path / "l") as ledger:
            ledger.export(tmp_path / "e.parquet")
    for run in (first, again):
        shown += [*map(repr, (run, run.plan, run.summary)), run._repr_html_(), run.plan._repr_html_()]
        held += map(repr, (run.counts, vars(run), vars(run.job), run.job.wire, vars(run.job.ledger)))
        held += [frame.write_json() for frame in (run.attempts, run.results, run.batches, run.waste)]
    assert caplog.text.count("POST") > 5
    shown += [caplog.text, *(str(vars(record)) for record in caplog.records)]
    assert not re.search(f"{key}|diagnosis|Confidential|Hidden system", "\n".join(shown))
    held += [repr(vars(api)), repr(vars(api.desk)), pl.read_parquet(tmp_path / "e.parquet").write_json()]
    assert key not in "\n".join(held)
    for file in tmp_path.iterdir():
        assert key.encode() not in file.read_bytes()


def test_an_error_of_connect_holds_no_key(monkeypatch):
    """No key is among the values that a traceback may show."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with pytest.raises(TypeError) as failed:
        cs.connect(simulate=True, latnecy=1)
    assert KEY not in "\n".join([*values_of(failed.value), repr(cs.connect(simulate=False))])


@pytest.mark.skipif(os.name != "posix", reason="there are no such permissions")
def test_files_are_their_owners(path):
    """The ledger and its companion files are private from their creation, whatever the umask."""
    before = os.umask(0)
    try:
        with closing(Store(path)) as store:
            store.claim(["a"])
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("a.ledger", "a.ledger-wal", "a.ledger-shm"), 0o600)


def test_the_advice_about_spreadsheets_works():
    """The line in the notes of `Run.results` leaves no cell that a spreadsheet would run."""
    (said,) = re.findall(r'pl\.col.*"\)', cs.Run.results.__doc__)
    replies = [*(f"{start}HYPERLINK(1)" for start in "=+-@\t\r"), None, "a=b", ""]
    safe = pl.DataFrame({"reply": replies, "number": range(-1, 8)}).with_columns(eval(said))
    assert safe["reply"].to_list() == [*(f"'{reply}" for reply in replies[:6]), *replies[6:]]
    assert safe["number"].to_list() == [*range(-1, 8)]
