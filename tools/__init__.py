"""Command lines and helpers around a dataset: convert, adopt, verify, inspect, doctor, sample_data."""

import shardline.pipeline  # noqa: F401  # first of all: it sees to Ctrl-C
