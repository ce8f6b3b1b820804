# unic-pipe with CUDA. docs/install.md says how to build and use it.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM python:3.12-slim AS wheel
WORKDIR /checkout
# What .dockerignore leaves.
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# PyTorch's wheels bring CUDA's libraries: the base is what the driver's tools expect, and of the same CUDA.
FROM $BASE
# Compiled models (compute.compile, distill.compile) need a C compiler and Python's headers; on a CPU one of C++.
RUN apt-get update && \
    apt-get install --yes --no-install-recommends python3 python3-dev python3-venv g++ && \
    rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/unic-pipe/bin:$PATH
# Another build of PyTorch than the default: the address that PyTorch's installation page gives.
ARG TORCH_INDEX=
COPY --from=wheel /wheels /wheels
RUN python3 -m venv /opt/unic-pipe && \
    pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.10" torchvision && \
    pip install --no-cache-dir "$(ls /wheels/*.whl)[clip,demo,dense,gpu,gs,mlflow,onnx,optuna,s3,wandb]" && \
    rm -rf /wheels

# Also for --user with a number that nobody has here: a home and a working folder that everybody may write to, and a name.
RUN useradd --create-home --uid 10001 unic && mkdir /data && chmod 777 /home/unic /data
ENV HOME=/home/unic USER=unic
USER unic
WORKDIR /data
ENTRYPOINT ["unic-pipe"]
