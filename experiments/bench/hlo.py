"""The collective operations of a compiled program, read from its HLO text."""

import math
import re
from typing import NamedTuple

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_CALLS = re.compile(r"(?:to_apply|calls|body|condition|\w+_computations?)=\{?(%?[\w.\-, %]+)\}?")
_LOOP = re.compile(r"(?:body|condition)=%?([\w.\-]+)")
_OPERATION = re.compile(rf"= (.+?) ({'|'.join(_KINDS)})\(")


class Collective(NamedTuple):
    """A collective operation of a compiled program."""

    kind: str  # all-reduce | all-gather | reduce-scatter | all-to-all | collective-permute
    size: int  # bytes of the whole array that is gathered or summed
    looped: bool  # inside a loop

    def moved(self, devices: int) -> float:
        """Bytes that each device sends, by the best algorithm over a ring."""
        once = self.size * (devices - 1) / devices
        return 2 * once if self.kind == "all-reduce" else once


def collectives(text: str, devices: int) -> list[Collective]:
    """The collective operations of a compiled program, in the order of its text.

    Args:
        text: ``jit(f).lower(...).compile().as_text()``.
        devices: n.
    """
    computations: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.endswith("{") and (start := re.match(r"(?:ENTRY )?%?([\w.\-]+) ", line)):
            name = start[1]
        computations.setdefault(name, []).append(line)
    looped = _in_loops(computations)
    result = []
    for name, lines in computations.items():
        for line in lines:
            if not (operation := _OPERATION.search(line)):
                continue
            shapes, kind = operation.groups()
            count = sum(
                _BYTES[dtype] * math.prod(int(d) for d in dims.split(",") if d)
                for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
                if dtype in _BYTES
            )
            # The text shows a reduce-scatter's result, one shard of what is summed.
            size = count * devices if kind == "reduce-scatter" else count
            result.append(Collective(kind, size, name in looped))
    return result


def _in_loops(computations: dict[str, list[str]]) -> set[str]:
    """Names of the computations that run inside a loop, called ones included."""
    looped = {
        name for lines in computations.values() for line in lines for name in _LOOP.findall(line)
    }
    new = set(looped)
    while new:
        called = {
            name.strip().lstrip("%")
            for caller in new
            for line in computations.get(caller, ())
            for names in _CALLS.findall(line)
            for name in names.split(",")
        }
        new = called - looped
        looped |= new
    return looped
