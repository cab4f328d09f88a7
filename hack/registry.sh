#!/usr/bin/env bash
# Provides docker-registry for the tests of artifacts. The last line of stdout, and the only one, is the path of the
# program; progress goes to stderr. Exit code 3: there is none to be had here. Sources, in this order:
#   1. $DOCKER_REGISTRY, when set: checked, never filled in from elsewhere;
#   2. the PATH;
#   3. the cache, ${XDG_CACHE_HOME:-$HOME/.cache}/praetor/docker-registry/;
#   4. Debian's package, unpacked into the cache: nothing is installed and no service starts.
set -euo pipefail

note() { printf 'registry: %s\n' "$*" >&2; }
lacking() { note "error: $*"; exit 3; }
usable() { "$1" --version >/dev/null 2>&1; }
wanted="install docker-registry 2.8 or newer (Debian: apt-get install --no-install-recommends docker-registry), or set DOCKER_REGISTRY to the program"

if [[ -n "${DOCKER_REGISTRY:-}" ]]; then
  usable "$DOCKER_REGISTRY" || { note "error: DOCKER_REGISTRY=$DOCKER_REGISTRY is no docker-registry that runs here"; exit 1; }
  echo "$DOCKER_REGISTRY"
  exit 0
fi

if found="$(command -v docker-registry)" && usable "$found"; then
  echo "$found"
  exit 0
fi

cache="${XDG_CACHE_HOME:-${HOME:?is needed to find the cache (or set XDG_CACHE_HOME)}/.cache}/praetor"
target="$cache/docker-registry"
if usable "$target/docker-registry"; then
  echo "$target/docker-registry"
  exit 0
fi

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  lacking "docker-registry is missing: $wanted"
fi
mkdir -p "$cache"
work="$(mktemp -d "$cache/registry.XXXXXX")"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Everybody may download a package that is known; only root may ask what there is.
fetch() { (cd "$work" && apt-get download docker-registry) >"$work/log" 2>&1; }
note "fetching Debian's package, once, into $target"
if ! fetch; then
  if [[ "$(id -u)" == 0 ]]; then
    apt-get update >"$work/update" 2>&1 || { tail -n 5 "$work/update" >&2; lacking "apt-get update failed (its last lines are above)"; }
    fetch || { tail -n 5 "$work/log" >&2; lacking "apt-get could not download docker-registry (its last lines are above): $wanted"; }
  else
    tail -n 5 "$work/log" >&2
    lacking "apt-get could not download docker-registry (its last lines are above), and asking for news takes root: $wanted"
  fi
fi
dpkg-deb --extract "$work"/docker-registry_*.deb "$work/unpacked"
usable "$work/unpacked/usr/bin/docker-registry" || lacking "Debian's docker-registry does not run on this machine: $wanted"

# A rename, so that no one ever sees half of it; another run may have been faster.
if ! usable "$target/docker-registry"; then
  rm -rf "$target"
  mv -T "$work/unpacked/usr/bin" "$target"
fi
echo "$target/docker-registry"
