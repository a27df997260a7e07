"""Inputs larger than memory: slices in, Parquet files out, one ledger for all."""

import polars as pl
import pytest
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.running.runs import run_parts


def parts(plan, tmp_path, client, **options):
    """Return the scan, without a progress bar."""
    given = {"ledger": tmp_path / "l", "progress": False, "rows": 40, **options}
    return cs.wait(run_parts(plan, tmp_path / "out", client, **given))


@pytest.fixture
def plan(tmp_path):
    """Plan over a Parquet file of 100 rows, of which 90 differ."""
    frame = pl.concat([reviews(90), reviews(10)])
    frame.write_parquet(tmp_path / "in.parquet")
    return a_plan(pl.scan_parquet(tmp_path / "in.parquet"))


@pytest.mark.slow
def test_slices_give_what_the_whole_gives_and_the_same_call_again_pays_nothing(plan, tmp_path):
    """All files equal the results of one run; another call, with other slices, leaves only its own."""
    with simulator(speed=200) as api:
        found = parts(plan, tmp_path, api.client()).collect()
        again = parts(plan, tmp_path, api.client(), rows=60).collect()
        assert api.stats["calls"] == api.stats["billed_rows"] == 90
        whole = finished(plan, api.client()).results
    assert found.sort("row").equals(again)
    assert again.drop("row").equals(whole)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"part-000000.parquet", "part-000001.parquet"}


@pytest.mark.slow
def test_a_budget_holds_for_all_slices(plan, tmp_path):
    """Later slices cannot spend what earlier ones spent; the files of finished slices stay."""
    plan = plan.replace(frame=reviews(200))
    with simulator(speed=200) as api:
        plan = plan.calibrate(finished(plan.head(20), api.client()))
        spent, budget = api.stats["dollars"], 1.03 * plan.options["dollars"][0]
        with pytest.raises(cs.RunStopped, match=r"rows from 160 .*budget") as stopped:
            parts(plan.replace(budget=budget), tmp_path, api.client(), rows=80)
        assert 0.6 * budget < api.stats["dollars"] - spent <= budget
    assert stopped.value.run.state == "stopped"
    assert (tmp_path / "out" / "part-000000.parquet").exists()


def test_what_cannot_be_sliced_is_refused(plan, tmp_path):
    """A prompt over other rows, a column of the same name, and `samples` are reported before sending."""
    changes = {
        "other slices": {"prompt": pl.col("text").shift(1)},
        "column 'row'": {"frame": reviews(3).with_row_index("row")},
        r"samples=2: use plan\.replace\(samples=1\)": {"samples": 2},
    }
    with simulator() as api:
        for words, change in changes.items():
            with pytest.raises(cs.PlanError, match=words):
                parts(plan.replace(**change), tmp_path, api.client())
        assert api.stats["calls"] == 0
