"""A short round of the chaos in the fast suite, a long one of all of it in the slow suite."""

import pytest

from tests.soak.__main__ import CONVERSION, SHORT, TRAINING, Soak, run


def test_kills_damage_and_second_owners_change_no_bit(tmp_path, capsys):
    assert run(Soak(tmp_path, None, 5, train=False, images=6), SHORT, 0, 5) == 0, capsys.readouterr()


@pytest.mark.slow
def test_the_same_with_everything_else_for_minutes(tmp_path, capsys):
    assert run(Soak(tmp_path, None, 6, train=True), CONVERSION + TRAINING, 240, 6) == 0, capsys.readouterr()
