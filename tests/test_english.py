"""The words that a reader sees are plain: none of them is odd by this project's STYLE."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ODD = {
    r"\bdear(er|est)?\b": "expensive",
    r"\bpurse\b": "budget",
    r"honest bill": "itemised bill",
    r", too[.!?;]": "also, before the verb",
    r"\bin debt\b": "overdrawn",
    r"doubt is paid": "uncertainty costs money",
    r"\b(On goes|what nothing speaks)\b": "subject first",
    r"\bMend\b": "Fix",
    r"\bis no (number|list|dict|text|pair|address|run|file)\b": "is not a ...",
    r"\bhas nobody to\b": "nothing here can",
    r"\bgo on with\b": "continue with",
    r"\bworked off\b": "processed",
    r"(?<![\d,.])1 (requests|rows|calls|batches|replies)\b": "one is singular",
}


def shown(path):
    """Return a file's visible text: strings in code, the prose of notebooks, everything in other files."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        nodes = list(ast.walk(ast.parse(text)))
        docstrings = [node.value for node in nodes if isinstance(node, ast.Expr)]
        texts = [node for node in nodes if isinstance(node, ast.Constant) and node not in docstrings]
        return "\n".join(node.value for node in texts if isinstance(node.value, str))
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return text


@pytest.mark.parametrize("files", ["*.md", "claudescale/**/*.*", "notebooks/*.ipynb"])
def test_no_odd_word_is_shown(files):
    """Texts of the package, the lessons' prose and README use the common word for each thing."""
    kinds = {".py", ".toml", ".ipynb", ".md"}
    texts = {path: shown(path) for path in ROOT.glob(files) if path.suffix in kinds}
    assert texts
    odd = [(path, word) for path, text in texts.items() for word in ODD if re.search(word, text)]
    assert odd == []
