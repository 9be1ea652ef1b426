"""The samples of some classes: which they are, and as two ends of one data set."""

import numpy as np
import pytest

from latentsb.data.arrays import Digits
from latentsb.data.classes import Classes
from latentsb.data.pairs import Unpaired
from latentsb.data.subset import split
from latentsb.errors import ArgumentError, DataError
from latentsb.randomness import Draws

LOW, HIGH = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)


def test_two_halves_are_the_whole_and_keep_their_order():
    whole = Digits()
    low, high = (Classes(of=whole, labels=labels) for labels in (LOW, HIGH))
    assert sorted([*low.rows, *high.rows]) == list(range(len(whole)))
    for part, labels in ((low, LOW), (high, HIGH)):
        assert (np.diff(part.rows) > 0).all()
        assert set(part.read(np.arange(len(part))).cond["label"].tolist()) == set(labels)
    assert low.fingerprint() != high.fingerprint()


def test_the_ends_of_a_translation_stay_apart_when_some_are_held_out():
    whole = Digits()
    known = {image.numpy().tobytes(): int(k) for image, k in zip(whole.samples, whole.values["label"], strict=True)}
    both = Unpaired(x0=Classes(of=whole, labels=LOW), x1=Classes(of=whole, labels=HIGH))
    for part in split(both, 200, seed=0):
        far = part.draw_x1(np.arange(part.partners), None, Draws.seeds(range(part.partners)))
        assert {known[image.numpy().tobytes()] for image in far} == set(HIGH)
        assert set(part.read(np.arange(len(part))).cond["label"].tolist()) == set(LOW)


class Gaps(Digits):
    """Digits without any nine."""

    def __init__(self):
        super().__init__()
        self.values["label"] = self.values["label"].clamp(max=8)


def test_what_cannot_be_chosen_is_refused():
    whole = Digits()
    for labels, told in (((), "none"), ((3, 10), "found 10")):
        with pytest.raises(ArgumentError, match=told):
            Classes(of=whole, labels=labels)
    with pytest.raises(ArgumentError, match="two ends"):
        Classes(of=Unpaired(x0=whole, x1=whole), labels=LOW)
    with pytest.raises(DataError, match="none of the 1,797 samples"):
        len(Classes(of=Gaps(), labels=(9,)))
