# The gateway as an image: `docker build -t sse-ticket-gateway .`
# BASE may be any image with Python 3.11 or newer, pip and OpenSSL's command.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
# One wheel for us and one for each dependency, so that the second step needs no network and the
# image holds exactly what was built here.
RUN python -m pip wheel --no-cache-dir --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/gateway \
    && python -m pip --python /opt/gateway/bin/python install --no-cache-dir \
        --no-index --find-links /wheels sse-ticket-gateway

FROM ${BASE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="sse-ticket-gateway" \
    org.opencontainers.image.description="LLM answers to a bare EventSource" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.licenses="MIT"
# A number, so that an orchestrator can see that it is not root. The two folders are where volumes
# go: a fresh one takes its owner from here. OpenSSL is for scripts/keys; a base without it fails
# now, not when somebody tries the composition.
RUN install -d -o 10001 -g 10001 -m 0700 /etc/gateway /etc/gateway-tls \
    && openssl version
COPY --from=build /opt/gateway /opt/gateway
# Byte code came with the install; the file system is read-only where this runs.
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GATEWAY_HOST=0.0.0.0
USER 10001:10001
WORKDIR /
EXPOSE 8000
STOPSIGNAL SIGTERM
# Not /readyz: where the unhealthy are killed, a Redis that is away would take all replicas along,
# and they go on through that. http.client, as urllib would ask a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=3); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["gateway"]
CMD ["serve"]
