# Two images, nothing in them but one static binary each (and the certificate authorities that the agent trusts):
#   docker build --target manager --tag praetor-manager:dev .
#   docker build --target agent   --tag praetor-agent:dev .
# `make images` does both, also where the base image cannot be pulled or no Docker runs at all. Needs BuildKit.
#
# hack/images.sh reads what is configured below from this file when it packs without Docker: one instruction a line,
# one label each.

# Of rust-toolchain.toml.
ARG RUST_VERSION=1.95.0
# Where the binaries come from: compiled here, or prebuilt in dist/rootfs by hack/static.sh.
ARG BINARIES=compiled

FROM rust:${RUST_VERSION}-bookworm AS compiled
WORKDIR /praetor
COPY Cargo.toml Cargo.lock ./
COPY hack/static.sh hack/
COPY src src
ARG SOURCE_DATE_EPOCH=0
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/praetor/target \
    hack/static.sh /rootfs

FROM scratch AS prebuilt
COPY dist/rootfs/ /rootfs/

FROM ${BINARIES} AS binaries

FROM scratch AS manager
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="praetor-manager"
LABEL org.opencontainers.image.description="Control plane for processes on devices that carry no kubelet"
LABEL org.opencontainers.image.version="${VERSION}"
LABEL org.opencontainers.image.revision="${REVISION}"
LABEL org.opencontainers.image.created="${CREATED}"
LABEL org.opencontainers.image.licenses="Apache-2.0"
COPY --from=binaries /rootfs/manager/ /
WORKDIR /
USER 65532:65532
EXPOSE 8080/tcp 8081/tcp 8082/tcp
ENTRYPOINT ["/praetor-manager"]

# It keeps its state in /var/lib/apollo/agent, which any user may write to: mount a volume there to keep it longer.
FROM scratch AS agent
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="praetor-agent"
LABEL org.opencontainers.image.description="Agent of Praetor for one device; holds no Kubernetes credential"
LABEL org.opencontainers.image.version="${VERSION}"
LABEL org.opencontainers.image.revision="${REVISION}"
LABEL org.opencontainers.image.created="${CREATED}"
LABEL org.opencontainers.image.licenses="Apache-2.0"
COPY --from=binaries /rootfs/agent/ /
WORKDIR /
USER 65532:65532
ENTRYPOINT ["/praetor-agent"]
