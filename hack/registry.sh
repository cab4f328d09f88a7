#!/usr/bin/env bash
# Provides docker-registry for the tests of artifacts. The last line of stdout, and the only one, is the path of the
# program; progress goes to stderr. Exit code 3: there is none to be had here. Sources, in this order:
#   1. $DOCKER_REGISTRY, when set: checked, never filled in from elsewhere;
#   2. the PATH;
#   3. the cache, ${XDG_CACHE_HOME:-$HOME/.cache}/praetor/docker-registry/;
#   4. Debian's package, unpacked into the cache: nothing is installed and no service starts.
set -euo pipefail
# shellcheck source=hack/debian.sh
source "$(dirname "${BASH_SOURCE[0]}")/debian.sh"

note() { printf 'registry: %s\n' "$*" >&2; }
give_up() { note "error: $*"; exit 3; }
runs() { "$1" --version >/dev/null 2>&1; }
usable() { runs "$1/docker-registry"; }
wanted="install docker-registry 2.8 or newer (Debian: apt-get install --no-install-recommends docker-registry), or set DOCKER_REGISTRY to the program"

if [[ -n "${DOCKER_REGISTRY:-}" ]]; then
  runs "$DOCKER_REGISTRY" || { note "error: DOCKER_REGISTRY=$DOCKER_REGISTRY is no docker-registry that runs here"; exit 1; }
  echo "$DOCKER_REGISTRY"
  exit 0
fi

if found="$(command -v docker-registry)" && runs "$found"; then
  echo "$found"
  exit 0
fi

target="$(cache_folder)/docker-registry"
usable "$target" || unpack_package docker-registry "docker-registry is" "$target"
echo "$target/docker-registry"
