# docker build --target cpu -t elit-serve:cpu .      docker run -p 8000:8000 elit-serve:cpu
# docker build --target cuda -t elit-serve:cuda .    docker run --gpus all -p 8000:8000 elit-serve:cuda
# With Ray, for replicas: --build-arg EXTRAS=postgres,ray
#
# Needs BuildKit, which has been Docker's default since version 23. Sources and the wheel stay in a stage of their own;
# torch, which is large and seldom changes, is a layer below what changes with every commit.

FROM python:3.12-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY elit_serve elit_serve
COPY models models
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim AS base
# The root file system may be read-only: what is measured, compiled and kept lies in two folders that can be mounted.
ENV XDG_CACHE_HOME=/cache XDG_STATE_HOME=/state TRITON_CACHE_DIR=/cache/triton TORCHINDUCTOR_CACHE_DIR=/cache/inductor
RUN groupadd --gid 10001 elit && useradd --uid 10001 --gid 10001 --create-home elit \
    && install --directory --owner elit --group elit /cache /state
WORKDIR /home/elit
# A server listens on 127.0.0.1 unless it is told otherwise, and a container's own is of no use to anybody.
ENV ELIT_SERVE_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s \
    CMD ["python", "-c", "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["elit-serve"]
CMD ["serve"]

FROM base AS cpu
ARG EXTRAS=postgres
RUN pip install --no-cache-dir 'torch>=2.11,<2.14' --index-url https://download.pytorch.org/whl/cpu
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[$EXTRAS]"
USER 10001:10001

FROM base AS cuda
ARG EXTRAS=postgres
# Triton compiles what launches its kernels. Debian keeps one version of a package, so none can be pinned.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir 'torch>=2.11,<2.14'
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[$EXTRAS]"
USER 10001:10001
