# iwm in a container, as a user without rights.
#
#   docker build -t iwm .
#   docker build -t iwm:cuda --build-arg BASE=nvidia/cuda:13.0.2-base-ubuntu24.04 .
#   docker run --rm -v "$PWD:/work" iwm imagine demo photo.jpg --action brightness=0.3
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" iwm:cuda pretrain cifar10 --data.source images --out runs/mine
#
# PyTorch's wheels bring CUDA's libraries; the CUDA base is there for its driver hooks. INDEX is an index of packages
# searched beside the usual one, for example PyTorch's own of wheels without CUDA, which are ten times smaller.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG INDEX=""
ARG COMMIT=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Debian keeps one version of a package, so none is pinned here and below.
# hadolint ignore=DL3008
RUN if ! python3 -c "import ensurepip"; then \
        apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && \
        rm -rf /var/lib/apt/lists/*; \
    fi
RUN python3 -m venv /opt/iwm
WORKDIR /src
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY src ./src
# --build-arg COMMIT=$(git rev-parse --short=12 HEAD): what `iwm --version` says; .git stays outside.
RUN test -z "${COMMIT}" || echo "${COMMIT}" > src/iwm/COMMIT
RUN /opt/iwm/bin/pip install --constraint constraints.txt ${INDEX:+--extra-index-url "${INDEX}"} '.[app]'

FROM ${BASE}
# A CUDA base has no Python; gcc is what torch.compile needs.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install -y --no-install-recommends gcc libc6-dev && \
    if ! command -v python3 > /dev/null; then \
        apt-get install -y --no-install-recommends python3 python3-dev; \
    fi && \
    rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 iwm && mkdir /work && chown iwm /work
COPY --from=build /opt/iwm /opt/iwm
ENV PATH=/opt/iwm/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /work
# iwm app listens here: docker run -p 7860:7860 iwm app --host 0.0.0.0
EXPOSE 7860
ENTRYPOINT ["iwm"]
CMD ["--help"]
