"""Measurements of shardline against named baselines, and the reports drawn from them."""

import shardline.pipeline  # noqa: F401  # first of all: it sees to Ctrl-C
