# One image for `adjourn serve` and `adjourn worker`: both are the same wheel, so they can never be of two releases.
#
# Where the packages come from is said at build time and leaves no trace in the image; the hashes of the lock hold for
# any of them. The default is pip's own; otherwise one of:
#   docker build --build-context wheels=/path/to/wheels --build-arg PIP_NO_INDEX=1 .
#   docker build --build-arg PIP_INDEX_URL=... .
#   docker build --secret id=pip,src=pip.conf .          (an index that asks for a password)
#
# Runs as 65532 on a read-only root. What it writes: /tmp (sockets between worker processes; mount an emptyDir) and
# /data (the SQLite store; mount a volume). A worker's image adds the code of the tasks:
#   FROM adjourn
#   COPY . /app

ARG PYTHON_IMAGE=python:3.11-slim

# Replaced by --build-context wheels=...
FROM scratch AS wheels

FROM ${PYTHON_IMAGE} AS build
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_NO_INDEX
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# Dependencies first: this layer is rebuilt only when the lock changes. /opt/adjourn gets no pip of its own.
COPY requirements/build.txt requirements/service.txt requirements/
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m venv --without-pip /opt/adjourn \
    && export PIP_FIND_LINKS=/wheels PIP_ONLY_BINARY=:all: \
    && python -m pip install --require-hashes -r requirements/build.txt \
    && python -m pip --python /opt/adjourn/bin/python install --require-hashes -r requirements/service.txt

COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY client client
COPY service service
RUN python -m pip wheel --no-index --no-build-isolation --no-deps --wheel-dir dist . \
    && python -m pip --python /opt/adjourn/bin/python install --no-index --no-deps dist/*.whl

FROM ${PYTHON_IMAGE}
# The store's folder belongs to the user before a volume covers it.
RUN install -d -o 65532 -g 65532 -m 0750 /data && install -d /app
COPY --from=build /opt/adjourn /opt/adjourn
ENV PATH=/opt/adjourn/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    ADJOURN_LISTEN=[::]:7766 \
    ADJOURN_STORE=sqlite:////data/adjourn.db
WORKDIR /app
USER 65532:65532
EXPOSE 7766 7767
# An orderly stop: the service finishes its commit, a worker finishes or gives back its tasks.
STOPSIGNAL SIGTERM
ENTRYPOINT ["adjourn"]
CMD ["serve"]
