#!/usr/bin/env bash
# From a folder of class folders to an exported model, on one host with 8 GPUs. Run it again to continue.
set -euo pipefail

SOURCE=/data/photos
DATA=/data/shards
RUN=/runs/vgg16

shardline-convert --source "$SOURCE" --output "$DATA" --size 256

# The default strategy takes all GPUs it sees. 128 samples a GPU: below 64 the GPUs wait for each other.
shardline-train --data "$DATA" --workdir "$RUN" --global_batch_size 1024 \
  --weights imagenet --phases head:2@1e-2,all:20@2e-3 --checkpoint_every_steps 500

shardline-evaluate --run "$RUN" --data "$DATA" --split test
shardline-export --run "$RUN" --output "$RUN/export"
