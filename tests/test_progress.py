"""The bar in a terminal and the lines in a log."""

import io

import pytest
import rich.console

from jaxcold.reporting.progress import Progress


def printed(terminal, width=80):
    """A console that writes into memory."""
    return rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=width)


def test_progress_in_a_log_prints_a_line_every_ten_seconds():
    now = 0.0
    console = printed(terminal=False)
    with Progress(
        "seed 3", total=1000, unit="pairs", console=console, clock=lambda: now
    ) as progress:
        for step in range(1, 11):
            now = 4.0 * step
            progress.advance(100, loss=1 / step)
    assert console.file.getvalue().splitlines() == [
        "seed 3: 30 %, loss 0.3333  25 pairs/s, 12 s, 28 s left",
        "seed 3: 60 %, loss 0.1667  25 pairs/s, 24 s, 16 s left",
        "seed 3: 90 %, loss 0.1111  25 pairs/s, 36 s, 4 s left",
        "seed 3: 100 %, loss 0.1000  25 pairs/s, 40 s",
    ]


def test_progress_in_a_terminal_draws_a_bar():
    console = printed(terminal=True, width=100)
    with Progress("seed 3", total=200, unit="pairs", console=console) as progress:
        progress.advance(100, loss=0.25)
        progress.say("epoch 1: cold NDCG@20 0.1 [not markup]")
    text = console.file.getvalue()
    assert "━" in text
    assert "50%" in text
    assert "epoch 1: cold NDCG@20 0.1 [not markup]" in text
    assert "loss 0.2500" in text


def test_progress_says_how_far_a_failed_run_came():
    console = printed(terminal=False)

    def fail():
        with Progress("seed 0", total=10, console=console) as progress:
            progress.advance(5, loss=1.0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert console.file.getvalue().startswith("seed 0: 50 %")
