"""Collective operations read from the text of a compiled program."""

from experiments.bench import hlo

PROGRAM = """
%body (a: f32[8]) -> f32[8] {
  %r = f32[8]{0} all-reduce(%a), to_apply=%add
}
%helper (a: f32[8]) -> f32[8] {
  %g = (f32[2,4]{1,0}, s32[3]{0}) all-gather(%a), dimensions={0}
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %w = f32[8]{0} while(%a), condition=%test, body=%body
  %c = f32[8]{0} call(%w), to_apply=%helper
  %s = bf16[5]{0} reduce-scatter(%c), dimensions={0}
}
"""


def test_collectives_of_a_program():
    result = hlo.collectives(PROGRAM, 4)
    assert result == [
        hlo.Collective("all-reduce", 32, True),
        hlo.Collective("all-gather", 44, False),
        hlo.Collective("reduce-scatter", 40, False),
    ]
    assert [move.moved(4) for move in result] == [48, 33, 30]
