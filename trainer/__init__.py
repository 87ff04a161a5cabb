"""Train a VGG16 on a dataset made by `shardline-convert`, exactly, on one device or many."""

import shardline.pipeline  # noqa: F401  # first of all: it sees to Ctrl-C
