"""Command lines and helpers around a dataset: convert, adopt, verify, inspect, doctor, sample_data."""
