# syntax=docker/dockerfile:1
# The daemon as an image: docker build -t ionos-poller .
#
#   docker run -v ionos-poller:/var/lib/ionos-poller -v "$PWD/config.toml:/etc/ionos-poller/config.toml:ro" \
#       -v "$PWD/token:/etc/ionos-poller/token:ro" -p 127.0.0.1:9464:9464 ionos-poller
#
# The token is for the user of the image alone: chown 10001 token && chmod 600 token. Any other command works, too:
# docker run ... ionos-poller check

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /src
# `EXTRAS=` leaves out what AWS Data Firehose and `setup` need.
ARG EXTRAS=firehose,setup
COPY requirements-dev.lock pyproject.toml README.md LICENSE ./
COPY poller ./poller
COPY man ./man
# The versions of the lock, without its hashes, as pip takes none for a package that it builds itself, and without extras,
# as no constraint names any.
RUN sed -n '/^[a-z0-9].*==/{s/ \\$//;s/\[[a-z,-]*\]//;p}' requirements-dev.lock > constraints.txt \
    && python -m venv /opt/ionos-poller \
    && /opt/ionos-poller/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="ionos-poller" \
      org.opencontainers.image.licenses="Apache-2.0"
# A number, so that Kubernetes can tell that it is not root; what it owns is the state.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin poller \
    && install -d -o poller -g poller -m 0700 /var/lib/ionos-poller \
    && install -D -m 0644 /dev/null /etc/ionos-poller/config.toml
COPY --from=build /opt/ionos-poller /opt/ionos-poller
# The configuration is named, and the working directory is not the volume: no file in the volume can take its place.
ENV PATH=/opt/ionos-poller/bin:$PATH \
    IONOS_POLLER_CONFIG=/etc/ionos-poller/config.toml \
    IONOS_POLLER_STATE_DIR=/var/lib/ionos-poller \
    IONOS_POLLER_HTTP__LISTEN=0.0.0.0:9464
USER 10001:10001
WORKDIR /
VOLUME /var/lib/ionos-poller
EXPOSE 9464
# Alive, not ready: /readyz fails while a sink is down, which a restart would not mend. http.client heeds no proxy.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 9464, timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["ionos-poller"]
CMD ["run"]
