"""The texts that lessons use, and the folder in which they work."""

import inspect
import io
from pathlib import Path

import polars as pl
import pytest

import claudescale as cs
from claudescale import lessons
from claudescale.api import media


def test_texts_are_real_and_each_has_its_label():
    """Several hundred docstrings of Polars, none empty, each with the object it belongs to."""
    docs, kinds = lessons.docstrings(), lessons.labelled_docstrings()
    assert docs.filter(owner="DataFrame", name="head")["text"].item() == inspect.getdoc(pl.DataFrame.head)
    assert set(docs["owner"]) == {"DataFrame", "LazyFrame", "Series", "Expr", "polars"}
    assert set(kinds["kind"]) == {"string", "datetime", "list", "array", "binary"}
    assert docs.height > 500
    assert kinds.height > 200
    assert "" not in {*docs["text"], *kinds["text"]}
    assert kinds["text"].is_unique().all()


def test_a_lesson_on_the_simulator_starts_in_an_empty_folder(tmp_path, monkeypatch):
    """It is new each time; with the API it is the same folder again, so what was paid for is found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lessons, "_HOME", tmp_path)
    client = cs.connect(simulate=True)
    first = lessons.work_in("rows", client)
    assert Path.cwd() == first
    assert lessons.work_in("rows", client) != first
    assert list(Path.cwd().iterdir()) == []
    real = cs.connect(api_key="k" * 20, base_url="https://gateway.example.com")
    assert lessons.work_in("rows", real) == lessons.work_in("rows", real) == tmp_path / "rows"


def test_an_exercise_is_open_right_or_wrong(capsys):
    """No answer is no mistake; a wrong one fails with the hint."""
    lessons.check(None, lambda answer: answer > 1, "Add.")
    lessons.check(2, lambda answer: answer > 1, "Add.")
    assert capsys.readouterr().out.splitlines()[1] == "Right."
    with pytest.raises(AssertionError, match=r"Not yet\. Add\."):
        lessons.check(1, lambda answer: answer > 1, "Add.")


@pytest.mark.slow
def test_pictures_are_real_and_the_same_each_time():
    """Two dozen charts are each a PNG and a PDF of one page, with a known kind and different sizes."""
    pictures = lessons.pictures()
    assert pictures.equals(lessons.pictures())
    assert pictures["kind"].value_counts().sort("kind").rows() == [
        ("area", 6), ("bar", 6), ("line", 6), ("point", 6),
    ]  # fmt: skip
    assert len({media.pixels(io.BytesIO(png)) for png in pictures["png"]}) > 2
    assert {media.pdf_pages(pdf)[0] for pdf in pictures["pdf"]} == {1}
