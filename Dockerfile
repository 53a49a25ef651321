# The gateway in an image of its own: `docker build -t carillon .`

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Both caches stay with the builder: the next build compiles only what has changed. Four fifths of
# the binary say which line of the source is where; the names of functions stay in it.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin carillon \
    && strip --strip-debug -o /carillon target/release/carillon

FROM debian:bookworm-slim
# Certificates of authorities, for a PostgreSQL that is reached over TLS.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /data --create-home carillon
COPY --from=build /carillon /usr/local/bin/carillon
USER carillon
WORKDIR /data
VOLUME /data
# SQLite unless DATABASE_URL says otherwise. The operations address is for the container's
# network, where metrics are scraped from; publish its port only to those who may read them.
ENV DATABASE_URL=sqlite:/data/carillon.db \
    CARILLON_OPERATIONS__LISTEN=0.0.0.0:9464
EXPOSE 3001 9464
# Liveness only: a database that is away is no reason to restart the gateway. The slim image has
# no HTTP client, but bash opens TCP connections.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["bash", "-c", "\
    exec 3<>/dev/tcp/127.0.0.1/${WEBSOCKET_PORT:-${REALTIME_PORT:-${PORT:-3001}}} \
    && printf 'GET /livez HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 \
    && read -r -t 2 status <&3 && [[ $status == *' 200 '* ]]"]
ENTRYPOINT ["carillon"]
CMD ["serve"]
