"""Measurements of shardline against named baselines, and the reports drawn from them."""
