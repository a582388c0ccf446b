# Tandem for NVIDIA GPUs with RDMA: workers, and everything that the CPU image does.
#   docker build -f k8s/images/cuda.Dockerfile -t ghcr.io/tandem-serve/tandem:0.1.0-cuda .
# The CUDA libraries come as wheels with torch; only the driver is the node's.
FROM docker.io/library/python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
RUN python -m venv /opt/tandem
ENV PATH=/opt/tandem/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
RUN mkdir protos workers router loadgen orchestrator k8s \
    && for folder in protos workers router loadgen orchestrator k8s; do touch $folder/__init__.py; done \
    && pip install --constraint constraints.txt '.[k8s]' \
    && pip uninstall --yes tandem-serve
COPY . .
RUN pip install --no-deps .
# The router's core as machine code, with the rest of what is compiled; mypyc stays behind.
ENV TANDEM_COMPILED=/opt/tandem/compiled
RUN pip install --target /opt/mypyc --constraint constraints.txt 'mypy[mypyc]' \
    && PYTHONPATH=/opt/mypyc python -m workers.compile --required

FROM docker.io/library/python:3.11-slim-bookworm
# gcc and the C headers: Triton compiles its launchers at the first start. rdma-core: NIXL over UCX.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
       bash wget libgomp1 gcc libc6-dev libibverbs1 librdmacm1 ibverbs-providers \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --user-group --home-dir /tmp --shell /usr/sbin/nologin tandem
COPY --from=build /opt/tandem /opt/tandem
ENV PATH=/opt/tandem/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    TANDEM_COMPILED=/opt/tandem/compiled \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /tmp
CMD ["tandem", "--help"]
