"""The summary figure."""

import pytest
from test_statistics import metrics_of
from test_tables import results  # noqa: F401 (a fixture)

from jaxcold.reporting.figures import figure


@pytest.mark.parametrize("part", ["all", "bare"])
def test_figure(tmp_path, results, part):  # noqa: F811
    """A picture of useful size, alone in its folder; also with nothing but metrics."""
    rows = [
        {"seed": seed, "epoch": epoch, "loss": 1 / epoch, "val/cold/ndcg@20": None}
        for seed in (0, 1)
        for epoch in (1, 2)
    ]
    items = {"SEMCo": metrics_of(0), "content_knn": metrics_of(2)}
    if part == "bare":
        rows, items = [], {}
        results = {key: value for key, value in results.items() if key != "baselines"}
    path = figure(tmp_path, rows, results, items)
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.png"]
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    width, height = (int.from_bytes(header[at : at + 4]) for at in (16, 20))
    assert (width, height) == (1430, 836)
