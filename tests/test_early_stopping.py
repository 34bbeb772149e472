"""Early stopping: which epoch is the best, when training ends, what a run remembers."""

import json
import math

import pytest

from jaxcold.train.early_stopping import EarlyStopping


def after(scores, state, first=1):
    """The states after evaluations of consecutive epochs."""
    states = []
    for epoch, score in enumerate(scores, first):
        state = state.update(epoch, score)
        states.append(state)
    return states


def test_the_first_of_equal_scores_is_the_best():
    states = after([0.1, 0.3, 0.3, 0.2], EarlyStopping(patience=2))
    assert [state.best_epoch for state in states] == [1, 2, 2, 2]
    assert [state.misses for state in states] == [0, 0, 1, 2]
    assert [state.should_stop for state in states] == [False, False, False, True]
    assert states[-1].best_score == 0.3


def test_a_gain_starts_the_patience_again():
    states = after([0.5, 0.4, 0.6, 0.5, 0.5], EarlyStopping(patience=2))
    assert [state.misses for state in states] == [0, 1, 0, 1, 2]
    assert [state.should_stop for state in states] == [False] * 4 + [True]
    assert (states[-1].best_epoch, states[-1].best_score) == (3, 0.6)


@pytest.mark.parametrize("patience", [1, 3, None])
def test_patience_counts_evaluations_without_a_gain(patience):
    states = after([1.0] + [0.0] * 5, EarlyStopping(patience=patience))
    stops = [epoch for epoch, state in enumerate(states, 1) if state.should_stop]
    assert stops == ([] if patience is None else list(range(1 + patience, 7)))


def test_a_score_that_is_nan_is_never_the_best():
    states = after([math.nan, math.nan, 0.1, math.nan], EarlyStopping(patience=2))
    assert [state.best_epoch for state in states] == [0, 0, 3, 3]
    assert [state.misses for state in states] == [1, 2, 0, 1]
    assert states[0].best_score is None
    assert states[1].should_stop
    assert states[-1].best_score == 0.1


def test_negative_scores_can_be_the_best():
    states = after([-3.0, -2.0, -5.0], EarlyStopping())
    assert (states[-1].best_epoch, states[-1].best_score) == (2, -2.0)
    assert after([-math.inf], EarlyStopping())[0].best_epoch == 0


def test_pretraining_epochs_are_neither_the_best_nor_misses():
    start = EarlyStopping(patience=1, pretraining_epochs=2)
    states = after([0.9, 0.1, 0.2, 0.1], start)
    assert states[0] == states[1] == start
    assert [state.best_epoch for state in states] == [0, 0, 3, 3]
    assert [state.should_stop for state in states] == [False, False, False, True]


def test_an_update_changes_no_state():
    start = EarlyStopping(patience=1)
    start.update(1, 0.5)
    assert start == EarlyStopping(patience=1)


@pytest.mark.parametrize("cut", range(6))
def test_a_run_that_goes_on_remembers_through_json(cut):
    scores = [math.nan, 0.2, 0.4, 0.4, math.nan, 0.1]
    start = EarlyStopping(patience=3, pretraining_epochs=1)
    whole = after(scores, start)
    before = after(scores[:cut], start)
    remembered = json.loads(json.dumps((before[-1] if before else start).to_json()))
    assert remembered.keys() == {"best_score", "best_epoch", "misses"}
    again = start.restored(remembered)
    assert again == (before[-1] if before else start)
    assert after(scores[cut:], again, cut + 1) == whole[cut:]
    # The patience is that of the command, not of the run that was cut off.
    assert EarlyStopping(patience=9).restored(remembered).patience == 9
