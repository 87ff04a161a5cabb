"""PyTorch on our shards: the same order, cursor and pixels as every other reader; the cursor lies in the checkpoint.

    python examples/pytorch_loop.py data

Several processes (torchrun) pass host=RANK and hosts=WORLD_SIZE: each gets its part of every global batch.
"""

from __future__ import annotations

import os
import sys

import torch

from shardline import pipeline

CONFIG = pipeline.InputConfig(global_batch_size=16, image_size=32, seed=1)


def model(classes: int) -> torch.nn.Module:
    """uint8 [b, h, w, 3] -> logits [b, classes]."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(16, classes),
    )  # fmt: skip


def train(directory: str, steps: int, state: dict | None = None) -> dict:
    """A checkpoint after some more steps."""
    data = pipeline.open_dataset(directory)
    torch.manual_seed(0)
    network = model(len(data.labels))
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    cursor = 0
    if state:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        cursor = state["cursor"]
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    batches = data.numpy_batches("train", CONFIG, cursor=cursor, host=rank, hosts=world)
    for _, batch in zip(range(steps), batches, strict=False):
        images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        losses = torch.nn.functional.cross_entropy(
            network(images), torch.from_numpy(batch["label"]).long(), reduction="none"
        )
        weight = torch.from_numpy(batch["weight"])
        optimizer.zero_grad()
        ((losses * weight).sum() / weight.sum()).backward()
        optimizer.step()
        cursor += CONFIG.global_batch_size
    return {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "cursor": cursor}


if __name__ == "__main__":
    whole = train(sys.argv[1], 20)
    continued = train(sys.argv[1], 10, train(sys.argv[1], 10))
    same = all(torch.equal(value, continued["network"][name]) for name, value in whole["network"].items())
    print("continued run equals the whole one:", same)
