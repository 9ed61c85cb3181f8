# docker build -t harp_jax .                                     computes on CPUs
# docker build -t harp_jax --build-arg EXTRAS=[cuda13] .         on NVIDIA GPUs: run it with --gpus=all
# docker run -v "$PWD/runs:/data/runs" harp_jax --config=digits --workdir=runs/digits
FROM python:3.12-slim
ARG EXTRAS=

# A C++ compiler, with which pruned networks compute with their kept weights alone on CPUs.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

COPY . /source
RUN pip install --no-cache-dir "/source${EXTRAS}" && rm -rf /source

WORKDIR /data
ENTRYPOINT ["harp-jax"]
