# docker build --target cpu -t elit-serve:cpu .      docker run -p 8000:8000 elit-serve:cpu
# docker build --target cuda -t elit-serve:cuda .    docker run --gpus all -p 8000:8000 elit-serve:cuda

FROM python:3.12-slim AS source
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY elit_serve elit_serve
COPY models models

FROM source AS base
ENV PIP_NO_CACHE_DIR=1 XDG_CACHE_HOME=/cache XDG_STATE_HOME=/state
RUN useradd --create-home --uid 10001 elit && install -d -o elit /cache /state

FROM base AS cpu
RUN pip install 'torch>=2.11,<2.14' --index-url https://download.pytorch.org/whl/cpu && pip install . && rm -rf /src
USER elit
WORKDIR /home/elit
EXPOSE 8000
HEALTHCHECK --interval=10s --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://localhost:8000/health')"]
ENTRYPOINT ["elit-serve"]
CMD ["serve"]

FROM base AS cuda
RUN pip install . && rm -rf /src
USER elit
WORKDIR /home/elit
EXPOSE 8000
HEALTHCHECK --interval=10s --start-period=120s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://localhost:8000/health')"]
ENTRYPOINT ["elit-serve"]
CMD ["serve"]
