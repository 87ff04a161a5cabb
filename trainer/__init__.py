"""Train a VGG16 on a dataset made by `shardline-convert`, exactly, on one device or many."""
