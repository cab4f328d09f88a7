#!/usr/bin/env bash
# Makes both images and writes them as dist/praetor-manager.tar and dist/praetor-agent.tar, which `docker load`,
# `ctr images import` and `kind load image-archive` read.
#   images.sh [docker|prebuilt|packed]    without a word: the first of these that works here, with the reason
#     docker    the Dockerfile as it is, in Docker
#     prebuilt  the Dockerfile in Docker with binaries that cargo has made here: when the base image cannot be had
#     packed    the same binaries, packed with tar and sha256sum: when there is no Docker, or one without BuildKit
#   images.sh check   that the images of dist/, made in whatever way, are what the Dockerfile says
# IMAGE and AGENT_IMAGE are their names. All three give the same files and the same configuration; packed, the tarballs
# are the same bytes each time, and so are the layers of Docker but for the times of folders.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
note() { printf 'images: %s\n' "$*" >&2; }
fail() { note "$*"; exit 1; }

manager_image="${IMAGE:-praetor-manager:dev}"
agent_image="${AGENT_IMAGE:-praetor-agent:dev}"
declare -A limit=([manager]=25000000 [agent]=8000000) # bytes
for image in "$manager_image" "$agent_image"; do
  [[ "$image" =~ ^[a-z0-9]+([._:/-]+[a-z0-9]+)*:[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] || fail "$image is no name for an image: use NAME:TAG, such as registry.example.com/praetor-manager:0.1.0"
done
[[ "$manager_image" != "$agent_image" ]] || fail "IMAGE and AGENT_IMAGE are both $manager_image: they are two images"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

version="$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)"
rust="$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)"
base="rust:$rust-bookworm"
grep -qx "ARG RUST_VERSION=$rust" Dockerfile || fail "the Dockerfile's RUST_VERSION is not $rust, which rust-toolchain.toml says"
# Time and revision of the last commit; a changed tree says so.
if revision="$(git rev-parse HEAD 2>/dev/null)"; then
  SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"
  [[ -z "$(git status --porcelain 2>/dev/null)" ]] || revision+=-changed
else
  revision=unknown
fi
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}"
created="$(date --utc --date="@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)"

# Prints a stage of the Dockerfile, an instruction a line, the variables of its labels filled in.
stage() {
  awk -v stage="$1" -v version="$version" -v revision="$revision" -v created="$created" '
    /^FROM / { on = $NF == stage; next }
    !on || /^(#|$|ARG )/ { next }
    { gsub(/\$\{VERSION\}/, version); gsub(/\$\{REVISION\}/, revision); gsub(/\$\{CREATED\}/, created); print }' Dockerfile
}
# What the Dockerfile says about a running container, as JSON.
configuration() {
  stage "$1" | awk '
    function pair(text) { labels = labels (labels == "" ? "" : ",") text }
    $1 == "LABEL" { sub(/^LABEL /, ""); at = index($0, "="); pair("\"" substr($0, 1, at - 1) "\":" substr($0, at + 1)); next }
    $1 == "USER" { user = $2; next }
    $1 == "WORKDIR" { folder = $2; next }
    $1 == "ENTRYPOINT" { sub(/^ENTRYPOINT /, ""); entry = $0; next }
    $1 == "EXPOSE" { for (i = 2; i <= NF; i++) ports = ports (i > 2 ? "," : "") "\"" $i "\":{}"; next }
    $1 == "COPY" { next }
    { print "images: cannot read this line of the Dockerfile: " $0 >"/dev/stderr"; exit 1 }
    END {
      printf "{\"User\":\"%s\",%s", user, ports == "" ? "" : "\"ExposedPorts\":{" ports "},"
      printf "\"Env\":[\"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"],"
      printf "\"Entrypoint\":%s,\"WorkingDir\":\"%s\",\"Labels\":{%s}}", entry, folder, labels
    }'
}
digest() { sha256sum "$1" | cut -d ' ' -f 1; }

archive() { # tar file, what goes into it...
  tar --create --file="$1" --format=ustar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner "${@:2}"
}

# Writes an image without any Docker: one layer, in the form of `docker save` that is also an OCI layout.
pack() { # manager or agent, name of the image, tar file
  local from="dist/rootfs/$1" root="$work/$1" layer config manifest repository="${2%:*}" machine
  [[ "$(stage "$1" | grep '^COPY')" == "COPY --from=binaries /rootfs/$1/ /" ]] || fail "the Dockerfile's stage $1 copies something that this script does not know"
  case "$(uname -m)" in x86_64) machine=amd64 ;; aarch64) machine=arm64 ;; *) machine="$(uname -m)" ;; esac
  mkdir -p "$root/blobs/sha256"
  store() { local sum; sum="$(digest "$1")" && mv "$1" "$root/blobs/sha256/$sum" && echo "$sum"; }
  size() { stat --format=%s "$root/blobs/sha256/$1"; }
  # A name without a registry is one of Docker's.
  [[ "${repository%%/*}" == *[.:]* || "${repository%%/*}" == localhost ]] || { [[ "$repository" == */* ]] || repository="library/$repository"; repository="docker.io/$repository"; }

  (cd "$from" && archive "$work/layer" -- *)
  layer="$(store "$work/layer")"
  printf '{"architecture":"%s","os":"linux","created":"%s","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"%s","created_by":"hack/images.sh"}]}' \
    "$machine" "$created" "$(configuration "$1")" "$layer" "$created" >"$work/config"
  config="$(store "$work/config")"
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%s}]}' \
    "$config" "$(size "$config")" "$layer" "$(size "$layer")" >"$work/manifest"
  manifest="$(store "$work/manifest")"
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"io.containerd.image.name":"%s:%s","org.opencontainers.image.ref.name":"%s"}}]}' \
    "$manifest" "$(size "$manifest")" "$repository" "${2##*:}" "${2##*:}" >"$root/index.json"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$root/oci-layout"
  printf '[{"Config":"blobs/sha256/%s","RepoTags":["%s"],"Layers":["blobs/sha256/%s"]}]' "$config" "$2" "$layer" >"$root/manifest.json"
  archive "$3" --directory="$root" blobs index.json manifest.json oci-layout
}

# A build with BuildKit, by the plugin of newer clients or with what older ones bring.
build() { # manager or agent, name of the image, more arguments...
  local target="$1" image="$2" client=(docker build)
  shift 2
  if docker buildx version >/dev/null 2>&1; then client=(docker buildx build --load); fi
  DOCKER_BUILDKIT=1 "${client[@]}" --target "$target" --tag "$image" --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH" --build-arg "VERSION=$version" \
    --build-arg "REVISION=$revision" --build-arg "CREATED=$created" "$@" . >&2
}
daemon() { command -v docker >/dev/null && docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
# Clients since 23 need a plugin for BuildKit; older ones bring it.
buildkit() { docker buildx version >/dev/null 2>&1 || [[ "$(docker version --format '{{.Client.Version}}' | cut -d . -f 1)" -lt 23 ]]; }

choose() { # prints the way and, after a blank, the reason
  if ! command -v docker >/dev/null; then
    echo "packed there is no docker here"
  elif ! daemon; then
    echo "packed no Docker daemon answers at ${DOCKER_HOST:-the usual socket}"
  elif ! buildkit; then
    echo "packed this docker has no BuildKit (its plugin buildx is missing)"
  elif docker image inspect "$base" >/dev/null 2>&1; then
    echo "docker Docker answers and has $base"
  elif docker pull --quiet "$base" >/dev/null 2>&1; then
    echo "docker Docker answers and has pulled $base"
  else
    echo "prebuilt Docker answers, but $base is not there and cannot be pulled"
  fi
}

each() { # function, arguments...: for both images
  "$@" manager "$manager_image"
  "$@" agent "$agent_image"
}
saved() { # manager or agent, its image
  docker save --output "dist/praetor-$1.tar" "$2"
}

check() {
  command -v jq >/dev/null || fail "jq is missing, which the check needs (Debian: apt-get install jq)"
  look() { # manager or agent, name of the image
    local tar="dist/praetor-$1.tar" got="$work/got-$1" config layers bytes
    [[ -s "$tar" ]] || fail "$tar is not there: run make images"
    mkdir -p "$got/root"
    tar --extract --file="$tar" --directory="$got"
    config="$got/$(jq --raw-output '.[0].Config' "$got/manifest.json")"
    [[ "$(jq --raw-output '.[0].RepoTags[0]' "$got/manifest.json")" == "$2" ]] || fail "$tar holds $(jq --compact-output '.[0].RepoTags' "$got/manifest.json"), not $2"
    diff <(configuration "$1" | jq --sort-keys .) <(jq --sort-keys '.config | {User, ExposedPorts, Env, Entrypoint, WorkingDir, Labels} | del(..|nulls)' "$config") >&2 ||
      fail "$tar is not configured as the Dockerfile says (> is what it has)"
    while read -r layers; do tar --extract --file="$got/$layers" --directory="$got/root"; done < <(jq --raw-output '.[0].Layers[]' "$got/manifest.json")
    [[ -d "dist/rootfs/$1" ]] || fail "dist/rootfs is not there to compare with: run hack/static.sh dist/rootfs"
    diff <(listing "dist/rootfs/$1") <(listing "$got/root") >&2 || fail "$tar does not hold the files of dist/rootfs/$1 (> is what it has)"
    # Another C library, in the base image, makes other binaries.
    bytes=differs
    [[ "$(sums "dist/rootfs/$1")" != "$(sums "$got/root")" ]] || bytes=equals
    note "$tar: configured as the Dockerfile says, with the same files as dist/rootfs/$1; its content $bytes"
  }
  # Without the times of folders: Docker sets those.
  listing() { (cd "$1" && find . -mindepth 1 \( -type d -printf '%m %p/\n' \) -o -printf '%m %p %y %Ts\n' | LC_ALL=C sort); }
  sums() { (cd "$1" && find . -type f -exec sha256sum {} + | LC_ALL=C sort -k 2); }
  each look
}

way="${1:-}"
case "$way" in
  "") read -r way reason < <(choose) ;;
  docker | prebuilt | packed) reason="asked for" ;;
  check)
    check
    exit 0
    ;;
  *) fail "$way is none of docker, prebuilt, packed, check" ;;
esac
note "$way: $reason"
mkdir -p dist
[[ "$way" == packed ]] || daemon || fail "$way needs a Docker daemon, and none answers"
case "$way" in
  docker)
    each build
    each saved
    ;;
  prebuilt)
    hack/static.sh dist/rootfs
    prebuilt() { build "$1" "$2" --build-arg BINARIES=prebuilt; }
    each prebuilt
    each saved
    ;;
  packed)
    hack/static.sh dist/rootfs
    packed() { pack "$1" "$2" "dist/praetor-$1.tar"; }
    each packed
    if daemon; then
      load() { docker load --quiet --input "dist/praetor-$1.tar" >&2; }
      each load
    fi
    ;;
esac
sized() { # manager or agent, its image
  local bytes
  bytes="$(stat --format=%s "dist/praetor-$1.tar")"
  ((bytes <= limit[$1])) || fail "dist/praetor-$1.tar has $bytes bytes, more than ${limit[$1]}"
  note "dist/praetor-$1.tar: $2, $((bytes / 100000 / 10)).$((bytes / 100000 % 10)) MB"
}
each sized
if [[ "$way" != docker ]] && command -v jq >/dev/null; then check; fi
