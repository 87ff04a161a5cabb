"""Thin networks with random weights, for tests of the model and of weight files."""

import numpy as np

from shardline.trainer import model, weight_files
from shardline.trainer.model import NetworkConfig, create_network, initialize

LABELS = ("a", "b", "c", "d")
HEADER = {  # of a checkpoint
    "step": 9, "cursor": 72, "phase": 0, "best_metric": "", "best": None, "best_step": 0, "evals_since_best": 0,
    "evaluation": {}, "train": {}, "sampler": {"records": 40}, "input_scale": 1.0,
    "labels": LABELS,
}  # fmt: skip
THIN = {"classes": 4, "image_size": 32, "width": 0.03}


def make_shallow(set_attribute):
    """From here on networks have one convolution a block, for tests of what does not depend on how many there are."""
    for module in (model, weight_files):
        set_attribute(module, "CONVOLUTIONS", (1, 1, 1, 1, 1))


def values(network):
    return {path: variable.numpy() for path, variable in network.weights.items()}


def randomized(seed=0, head="fc4096", **options):
    network = create_network(NetworkConfig(head=head, **THIN | options))
    initialize(network, seed)
    random = np.random.default_rng(seed)
    for path, variable in network.weights.items():
        if path.endswith("bias"):  # zeros would hide a bias that was not loaded
            variable.assign(random.normal(size=variable.shape).astype(np.float32))
    return network
