"""Few of the cases of a mechanism among the fast tests, so that it can fail there; the others among the slow ones."""

import pytest


def few(cases, *fast):
    """Cases for `parametrize`: those that are not named as fast are slow."""
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in cases]
