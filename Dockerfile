# A node of a Ray cluster that renders and trains on NVIDIA's GPUs: Ray, asyncblend, and Blender as a Python module.
#
#     docker build -t asyncblend .
#     docker run --rm --gpus all asyncblend asyncblend doctor
#
# The machine needs NVIDIA's driver and its container toolkit, and nothing else. For a cluster, push the image to a
# registry that the nodes can pull from; examples/ray-kuberay.yaml and examples/ray-cluster.yaml say what comes next.

# Ray's image without CUDA, which is some gigabytes smaller: PyTorch and Cycles bring their own.
FROM rayproject/ray:2.60.0-py311

# What of the driver the toolkit puts into the container: `compute` is CUDA, `utility` is what Ray counts GPUs with, and
# `graphics` is OptiX for Cycles and EGL for EEVEE. Left to itself, the toolkit gives only the first two.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics

# What the bpy module is linked with, as in the Makefile.
USER root
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        libx11-6 libxrender1 libxfixes3 libxi6 libxxf86vm1 libxkbcommon0 libsm6 libice6 libgl1 libegl1 \
    && rm -rf /var/lib/apt/lists/*

USER ray
WORKDIR /home/ray/asyncblend
COPY --chown=ray . .
RUN pip install --no-cache-dir ".[bpy,ray,record,cloud]"
