"""From sources to a finished dataset: what shardline-convert is made of."""
