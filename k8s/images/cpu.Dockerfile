# Tandem for CPUs: routers, the operator, and workers of small models.
#   docker build -f k8s/images/cpu.Dockerfile -t ghcr.io/tandem-serve/tandem:0.1.0-cpu .
FROM docker.io/library/python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
RUN python -m venv /opt/tandem
ENV PATH=/opt/tandem/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# Dependencies first: they change less often than the code.
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
RUN mkdir protos workers router loadgen orchestrator k8s \
    && for folder in protos workers router loadgen orchestrator k8s; do touch $folder/__init__.py; done \
    && pip install --extra-index-url https://download.pytorch.org/whl/cpu \
       --constraint constraints.txt 'torch==2.13.0+cpu' '.[k8s]' \
    && pip uninstall --yes tandem-serve
COPY . .
RUN pip install --no-deps .
# The router's core as machine code, with the rest of what is compiled; mypyc stays behind.
ENV TANDEM_COMPILED=/opt/tandem/compiled
RUN pip install --target /opt/mypyc --constraint constraints.txt 'mypy[mypyc]' \
    && PYTHONPATH=/opt/mypyc python -m workers.compile --required

FROM docker.io/library/python:3.11-slim-bookworm
# KubeRay starts Ray with bash and asks after its health with wget. g++: workers compile their CPU
# kernels for the processor that they find, at the first start.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash wget libgomp1 g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --user-group --home-dir /tmp --shell /usr/sbin/nologin tandem
COPY --from=build /opt/tandem /opt/tandem
ENV PATH=/opt/tandem/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    TANDEM_COMPILED=/opt/tandem/compiled
# Everything that is written goes below /tmp, so the root file system may be read-only.
USER 1000:1000
WORKDIR /tmp
CMD ["tandem", "--help"]
