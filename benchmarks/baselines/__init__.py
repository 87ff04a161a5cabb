"""What the benchmarks compare with: other loaders, other converters, plain Keras."""
