"""A short round of the fuzzer: what ever crashed, and some hundred changed copies of the seeds, always the same."""

import pytest

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS

ROUNDS = 400


@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_crash_a_reader(name):
    target = TARGETS[name]
    corpus = target.corpus(name)
    for data in [*corpus, *(mutated(corpus, number) for number in range(ROUNDS))]:
        try:
            target(data)
        except Exception as error:
            raise AssertionError(f"{name} on {data[:200]!r}") from error


def test_the_targets_notice_what_must_not_happen():
    """A target that could not fail would prove nothing."""
    target = TARGETS["index"]
    with pytest.raises(ZeroDivisionError):
        type(target)(lambda data: 1 // 0, target.seeds, target.allowed)(b"")
    with pytest.raises(AssertionError, match="not in one line"):
        type(target)(lambda data: (_ for _ in ()).throw(ValueError("a\nb")), target.seeds, target.allowed)(b"")
