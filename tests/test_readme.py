"""README's examples run as they are written."""

import pathlib
import re

import pytest

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("reader", ["engineer", "entmax user"])
@pytest.mark.filterwarnings("ignore")
def test_a_minute_for(reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = README.split(f"## One minute for the {reader}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})


def test_it_has_at_most_120_lines():
    assert len(README.splitlines()) <= 120
