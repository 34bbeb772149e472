"""The benchmark of SASRec's step compares forms that compute the same. No test reads a time."""

import importlib.util
import math

import jax
import numpy as np
import pytest

from experiments.bench import sasrec_step
from jaxcold.data.sequences import batches as packing
from jaxcold.data.sequences.split import windows

TINY = sasrec_step.Sizes(
    items=50,
    dim=8,
    max_length=6,
    batch=16,
    dense_batch=16,
    full=False,
    dropout=0.0,
    blocks=1,
    batches=1,
)
TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXCOLD_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def printed(measured: sasrec_step.Measured) -> str:
    return "\n".join(sasrec_step.format_report("tiny", measured))


def test_both_forms_compute_the_same_loss_and_every_row_is_measured():
    m = sasrec_step.measure(TINY, 1.0, repeats=1)
    forms = {"ours", "dense"} | ({"torch"} if TORCH else set())
    assert set(m.seconds) == set(m.over_ours) == set(m.first_loss) == forms
    assert m.first_loss["ours"] == pytest.approx(m.first_loss["dense"], rel=1e-5)
    values = [*m.seconds.values(), *m.over_ours.values(), *m.matmul.values(), m.fraction_of_peak]
    assert all(math.isfinite(value) and value > 0 for value in values)
    assert m.temporary["dense"] > 4 * TINY.batch * TINY.max_length * TINY.items  # the logits
    for form in ("ours", "dense"):
        assert all(0 < m.real(form, part) <= 1 for part in sasrec_step.PARTS)
    text = printed(m)
    assert "over ours" in text
    if TORCH:
        # The second and third losses see one and two steps of the optimizer and of the bound.
        assert m.torch_gap is not None
        assert m.torch_gap < 1e-4
        assert "torch: its first three losses" in text
    else:
        assert m.torch_gap is None
        assert "torch: skipped" in text
    assert "not run at batch" not in text


def test_figures_that_are_extrapolated_say_so():
    one, whole = dict.fromkeys(sasrec_step.PARTS, 1.0), dict.fromkeys(sasrec_step.PARTS, 4.0)
    m = sasrec_step.Measured(
        TINY._replace(dense_batch=8),
        seconds={"ours": 0.5, "dense": 3.0},
        over_ours={"ours": 1.0, "dense": 6.0},
        temporary={"ours": 10**6, "dense": 40 * 10**6},
        first_loss={},
        needed=one,
        executed={"ours": one, "dense": whole},
        matmul={"logits": 24.0, "other": 12.0},
    )
    assert m.achieved == 6
    assert m.fraction_of_peak == 0.25
    text = printed(m)
    assert "within 3.0e-06" in printed(m._replace(torch_gap=3e-6))
    assert "not run at batch 16: the line through batches 2 and 8" in text
    assert "torch: skipped" in text
    cells = next(line for line in text.splitlines() if "dense *" in line).split()
    assert cells[2:] == ["3,000.0", "6.00", "40.0", "0.0250"]
    assert "75% of the dense step's slots are padding" in text


def test_sparse_losses_are_compared_with_the_same_loss():
    dataset = sasrec_step.generate(TINY, sasrec_step.draw_lengths(TINY, TINY.batch))
    model = sasrec_step.build(dataset, TINY, 1.5)
    rows = windows(dataset.train, TINY.max_length, "last")
    capacity = packing.capacity_for(rows.counts - 1, TINY.batch)
    params, model_state = model.init(0)
    totals = []
    for form, tokens in (
        (model, sasrec_step.pack(rows, capacity)),
        (sasrec_step.make_dense(model, TINY, 1.5), sasrec_step.pad(rows)),
    ):
        loss = jax.jit(form.losses["main"])
        total, (count, _, _) = loss(params, model_state, model.constants, tokens, jax.random.key(0))
        assert float(count) == rows.counts.sum() - rows.rows
        totals.append(float(total))
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)


def test_the_line_counts_what_does_not_grow_once():
    times = {"dense 4": 3.0, "dense 16": 6.0}  # 2 + batch / 4
    assert sasrec_step.extrapolate("dense", [4, 16], times, 128) == pytest.approx(34)
    assert sasrec_step.extrapolate("dense", [16], times, 16) == 6


def test_flops_of_a_batch_by_hand():
    sizes = TINY._replace(batch=2)
    rows = windows(sasrec_step.generate(sizes, np.array([2, 6])).train, 6, "last")
    capacity = packing.capacity_for(rows.counts - 1, sizes.batch)
    tokens = sasrec_step.pack(rows, capacity)
    needed, executed = sasrec_step.count_flops(sizes, [rows], [tokens])
    layer, attend = 3 * 2 * 6 * 8 * 8, 3 * 4 * 8
    assert needed == {
        "loss": 3 * 2 * 8 * 50 * 8,
        "layers": 8 * layer,
        "attention": (2 * 2 + 6 * 6) * attend,
    }
    assert executed["dense"] == {
        "loss": 3 * 2 * 12 * 50 * 8,
        "layers": 12 * layer,
        "attention": 2 * 6 * 6 * attend,
    }
    # Fewer tokens than rows of a tile; buckets of length 4 and 6 with a capacity of two rows.
    size = len(tokens.item)
    assert 8 <= size <= 16
    assert executed["ours"] == {
        "loss": 3 * 2 * size * 50 * 8,
        "layers": size * layer,
        "attention": 2 * (4 * 4 + 6 * 6) * attend,
    }


def test_lengths_without_data_leave_most_of_a_padded_batch_to_padding():
    beauty = sasrec_step.SIZES["beauty"]
    lengths = sasrec_step.draw_lengths(beauty, 128 * 50)
    assert 1 <= lengths.min() < lengths.max() == 32
    padding = 1 - lengths.reshape(50, 128).mean(1) / lengths.reshape(50, 128).max(1)
    assert 0.7 < padding.mean() < 0.85
    full = sasrec_step.draw_lengths(sasrec_step.SIZES["zvuk"], 3)
    np.testing.assert_array_equal(full, 128)
