# shardline on NVIDIA GPUs: docker build --file docker/gpu.Dockerfile --tag shardline:gpu .
# docker run --rm --gpus all --shm-size 16g --user "$(id -u):$(id -g)" --volume "$PWD:/work" shardline:gpu train ...
# CUDA comes with the wheels; the host brings the driver and NVIDIA's container toolkit.
FROM python:3.11-bookworm AS build
# Not the slim image: it has a compiler, for pipeline/_native.c.
WORKDIR /src
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim-bookworm
COPY --from=build /wheel /wheel
COPY constraints.txt /wheel/
RUN python -m pip install --no-cache-dir --constraint /wheel/constraints.txt "$(echo /wheel/*.whl)[gpu]" && rm -rf /wheel/*
ENV HOME=/tmp TF_CPP_MIN_LOG_LEVEL=2 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
ENTRYPOINT ["shardline"]
CMD ["--help"]
