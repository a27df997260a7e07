"""Every way to await a run, and to interrupt it: no hang, no warning, no paid reply lost."""

import asyncio
import gc
import os
import subprocess
import sys
import textwrap

import nbformat
import pytest
from nbclient import NotebookClient
from running import a_plan, reviews, simulator, until

import claudescale as cs
from claudescale import loops


@pytest.fixture(scope="module")
def api():
    """Return a simulator."""
    with simulator() as one:
        yield one


def started(api, rows=3, **options):
    """Return a run in progress."""
    return a_plan(reviews(rows), **options).start(api.client(), ledger=None, progress=False)


async def awaited(run):
    """Await anything, for functions that accept only coroutines."""
    return await run


def test_every_door_gives_the_run_or_its_error(api):
    """`await` on the caller's own loop and `cs.wait` work before and after the end, also concurrently.

    An interrupt in the background, as by Polars in any thread that collects, leaves the loop usable.
    """

    async def main(**options):
        run = a_plan(reviews(3)).start(api.client(**options), ledger=None, progress=False)
        assert run.home is asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="use await"):  # it would wait for itself forever
            cs.wait(run)
        return run, await asyncio.gather(awaited(run), awaited(run), return_exceptions=True)

    async def interrupted():
        raise KeyboardInterrupt

    assert loops.in_notebook() is False  # even if ipykernel happens to be imported
    run, given = asyncio.run(main(api_key="sk-wrong"))
    assert [type(error) for error in given] == [cs.RunStopped] * 2
    with pytest.raises(cs.RunStopped):
        cs.wait(run)
    with pytest.raises(KeyboardInterrupt):
        cs.wait(interrupted())
    for run, given in (asyncio.run(main()), cs.wait(main())):
        assert [*given, cs.wait(run)] == [run] * 3
    run = started(api)
    assert cs.wait(run) is asyncio.run(awaited(run)) is run


@pytest.mark.parametrize("ending", ["cancel", "loop"])
def test_a_run_that_is_left_keeps_what_is_in_flight(ending):
    """If its task is canceled, as by a timeout, or its loop is gone, it stops and has all that was billed."""

    async def main(api):
        run = started(api, 3_000, concurrency=5)
        waiting = asyncio.create_task(awaited(run))
        await until(lambda: run.counts.answered > 5)
        if ending == "cancel":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiting, 0)
        return run

    with simulator() as api:
        run = asyncio.run(main(api))
        assert run.state == "stopped"
        assert 5 < run.results["reply"].count() <= api.stats["billed_rows"] < 3_000
        if ending == "cancel":
            assert run.results["reply"].count() == api.stats["billed_rows"]
    gc.collect()  # no warning that it was not awaited


SCRIPT = """
import asyncio, os, sys, time, warnings, anthropic, claudescale as cs
from running import a_plan, reviews
print(cs.wait(asyncio.sleep(0, 1)), flush=True)
with warnings.catch_warnings(action="ignore"):
    child = os.fork()  # which takes no thread along
if not child:
    print(cs.wait(asyncio.sleep(0, 2)), flush=True)
    os._exit(0)
os.waitpid(child, 0)
client = anthropic.AsyncAnthropic(api_key="simulated", base_url=sys.argv[1], max_retries=0)
run = a_plan(reviews(3_000), concurrency=4).start(client, ledger=sys.argv[2], progress=False)
while run.counts.answered < 20:
    time.sleep(0.01)
async def main():
    return cs.wait(asyncio.sleep(0, 3), nested=True)
assert not hasattr(asyncio, "_nest_patched")
warnings.simplefilter("ignore")
print(asyncio.new_event_loop().run_until_complete(main()), hasattr(asyncio, "_nest_patched"))
"""


@pytest.mark.slow
def test_a_process_that_ends_keeps_what_is_in_flight(path, monkeypatch):
    """A script that starts a run and ends does not hang or warn, and the ledger has all that was billed.

    Its fork waits on a loop of its own, and asyncio stays unpatched until nested=True.
    """
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with simulator() as api:
        command = [sys.executable, "-W", "default", "-c", SCRIPT, api.url, path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "1\n2\n3 True\n", "")
        assert cs.Ledger(path).attempts()["reply"].count() == api.stats["billed_rows"] < 3_000


CELLS = [
    """
    import asyncio, claudescale as cs
    from running import a_plan, interrupt_when, reviews, simulator
    api = simulator(speed=30)
    client, loop = api.client(), asyncio.get_running_loop()
    def start(rows=6_000):
        return a_plan(reviews(rows), concurrency=4).start(client, ledger=None, progress=False)
    """,
    "run = await a_plan(reviews(30)).run(client, ledger=None)\nrun",
    """
    going = start()
    while going.state == "starting":
        await asyncio.sleep(0.01)
    seen = going.state, going.counts.answered < 6_000
    going.stop(); seen, (await going).state, cs.wait(start(3)).state
    """,
    """
    task = asyncio.create_task(asyncio.wait_for(start(), 0.2))
    await asyncio.wait([task]); type(task.exception()), loop is asyncio.get_running_loop()
    """,
    # Every await returns long before that many are answered, also on a busy machine.
    "run = start(); interrupt_when(lambda: run.counts.answered > 200)\nawait run",
    "run = start(); interrupt_when(lambda: run.counts.answered > 200)\ncs.wait(run)",
    "run.state, run.results['reply'].count() > 3",
]


@pytest.mark.slow
def test_in_a_notebook(monkeypatch):
    """Every await works, other cells run meanwhile, an interrupt is one line, and the kernel lives on."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in CELLS]
    )
    client = NotebookClient(notebook, timeout=90, kernel_name="python3", allow_errors=True)
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()
    _, bar, *doors = notebook.cells
    assert "simulated: 100%" in "".join(o.text for o in bar.outputs if o.get("name") == "stdout")
    assert not [output for output in bar.outputs if output.get("name") == "stderr"]
    assert "SIMULATED Run finished: 30 of 30" in bar.outputs[-1]["data"]["text/html"]
    shown = [cell.outputs[-1].get("data", {}).get("text/plain") for cell in doors]
    running = "(('running', True), 'stopped', 'finished')"
    assert shown == [running, "(TimeoutError, True)", None, None, "('stopped', True)"]
    for cell in doors[2:4]:
        (line,) = cell.outputs[-1].traceback
        assert line.startswith("■ Interrupted: ")
