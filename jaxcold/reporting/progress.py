"""The progress of a long loop: a bar in a terminal, lines in a log."""

import time
from collections.abc import Callable

import rich.console
import rich.progress
import rich.text


class Progress:
    """A bar with loss, rate and time left; where output is no terminal, a line every ten seconds.

    ``with Progress("seed 0", total=pairs, unit="pairs") as progress: progress.advance(2048, loss)``
    """

    def __init__(
        self,
        title: str,
        *,
        total: int,
        unit: str = "items",
        console: rich.console.Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: float = 10.0,
        done: int = 0,
    ) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._console = console or rich.console.Console()
        self._clock, self._every = clock, every
        self._done = self._before = done  # of the total; before: by an earlier process
        self._loss: float | None = None
        self._start = self._last = clock()
        self._bar: rich.progress.Progress | None = None
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=None),
                rich.progress.TaskProgressColumn(),
                rich.progress.TextColumn("{task.fields[status]}"),
                rich.progress.TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(
                self._title, total=self._total, completed=self._done, status=""
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()
        self.say(self._line())

    def advance(self, items: int, loss: float | None = None) -> None:
        """Adds to the finished items; `loss` is that of the latest step, None of no training."""
        self._done += items
        self._loss = loss
        if self._bar:
            self._bar.update(self._task, advance=items, status=self._status())
        elif self._clock() - self._last >= self._every:
            self.say(self._line())
            self._last = self._clock()

    def say(self, line: str) -> None:
        """Prints a line, above the bar where there is one."""
        self._console.print(rich.text.Text(line), soft_wrap=True)

    def _elapsed(self) -> float:
        return max(self._clock() - self._start, 1e-9)

    def _status(self) -> str:
        loss = "" if self._loss is None else f"loss {self._loss:.4f}  "
        return f"{loss}{self._rate():,.0f} {self._unit}/s"

    def _rate(self) -> float:
        return (self._done - self._before) / self._elapsed()

    def _line(self) -> str:
        percent = 100 * self._done / max(self._total, 1)
        line = f"{self._title}: {percent:.0f} %, {self._status()}, {self._elapsed():.0f} s"
        if self._before < self._done < self._total:
            line += f", {(self._total - self._done) / self._rate():.0f} s left"
        return line
