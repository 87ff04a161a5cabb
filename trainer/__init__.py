"""Train a VGG16 on a dataset made by `tools.convert`, exactly, on one device or many."""
