# syntax=docker/dockerfile:1
# The daemon as an image: docker build -t ionos-poller .
#
#   docker run -v ionos-poller:/var/lib/ionos-poller -v "$PWD/config.toml:/etc/ionos-poller/config.toml:ro" \
#       -v "$PWD/token:/etc/ionos-poller/token:ro" -p 127.0.0.1:9464:9464 ionos-poller
#
# Only the user of the image may read the token: chown 10001 token && chmod 600 token. Other commands work, too:
# docker run ... ionos-poller check

# Tag and digest change together: docker buildx imagetools inspect python:3.13-slim
ARG BASE=python:3.13.15-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b

FROM ${BASE} AS build
WORKDIR /src
COPY requirements.lock requirements-build.lock pyproject.toml README.md LICENSE ./
COPY poller ./poller
COPY man ./man
COPY systemd ./systemd
# A lock has the hash of every package: of those that build the wheel, and of those that run.
RUN python -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements-build.lock \
    && python -m venv /opt/ionos-poller \
    && /opt/ionos-poller/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
    && /opt/build/bin/python -m hatchling build -t wheel \
    && /opt/ionos-poller/bin/pip install --no-cache-dir --no-deps --no-index dist/*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="ionos-poller" \
      org.opencontainers.image.licenses="Apache-2.0"
# A number, so that Kubernetes can check that it is not root. It owns only the state.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin poller \
    && install -d -o poller -g poller -m 0700 /var/lib/ionos-poller \
    && install -D -m 0644 /dev/null /etc/ionos-poller/config.toml
COPY --from=build /opt/ionos-poller /opt/ionos-poller
# The path of the configuration is fixed, and the working directory is not the volume: no file in the volume can replace it.
ENV PATH=/opt/ionos-poller/bin:$PATH \
    IONOS_POLLER_CONFIG=/etc/ionos-poller/config.toml \
    IONOS_POLLER_STATE_DIR=/var/lib/ionos-poller \
    IONOS_POLLER_HTTP__LISTEN=0.0.0.0:9464
USER 10001:10001
WORKDIR /
VOLUME /var/lib/ionos-poller
EXPOSE 9464
# Checks liveness, not readiness: /readyz fails while a sink is parked, and a restart would not fix that. http.client uses no proxy.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 9464, timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["ionos-poller"]
CMD ["run"]
