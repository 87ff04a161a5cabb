"""Measurements of shardline against named baselines, and the reports drawn from them."""

from contextlib import suppress

with suppress(ModuleNotFoundError):  # in another Python there is nothing of ours but this package
    import shardline.pipeline  # noqa: F401  # first of all: it sees to Ctrl-C
