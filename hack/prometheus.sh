#!/usr/bin/env bash
# Provides prometheus and promtool for the checks of config/monitoring. The last line of stdout, and the only one, is
# the folder that holds them; progress goes to stderr. Sources, in this order:
#   1. $PROMETHEUS_ASSETS, when set: checked, never filled in from elsewhere;
#   2. the PATH;
#   3. the cache, ${XDG_CACHE_HOME:-$HOME/.cache}/praetor/prometheus/;
#   4. Debian's package, unpacked into the cache: nothing is installed and no service starts.
set -euo pipefail

note() { printf 'prometheus: %s\n' "$*" >&2; }
fail() { note "error: $*"; exit 1; }
usable() { "$1/prometheus" --version >/dev/null 2>&1 && "$1/promtool" --version >/dev/null 2>&1; }
wanted="install Prometheus 2.40 or newer (Debian: apt-get install --no-install-recommends prometheus), or set PROMETHEUS_ASSETS to a folder with prometheus and promtool"

if [[ -n "${PROMETHEUS_ASSETS:-}" ]]; then
  for binary in prometheus promtool; do
    [[ -x "$PROMETHEUS_ASSETS/$binary" ]] ||
      fail "PROMETHEUS_ASSETS=$PROMETHEUS_ASSETS holds no executable $binary; unset it to use the PATH, the cache or a package"
  done
  usable "$PROMETHEUS_ASSETS" || fail "the programs in PROMETHEUS_ASSETS=$PROMETHEUS_ASSETS do not run on this machine"
  cd "$PROMETHEUS_ASSETS" && pwd
  exit 0
fi

if found="$(command -v prometheus)" && usable "$(dirname "$found")"; then
  dirname "$found"
  exit 0
fi

cache="${XDG_CACHE_HOME:-${HOME:?is needed to find the cache (or set XDG_CACHE_HOME)}/.cache}/praetor"
target="$cache/prometheus"
if usable "$target"; then
  echo "$target"
  exit 0
fi

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  fail "prometheus and promtool are missing: $wanted"
fi
mkdir -p "$cache"
work="$(mktemp -d "$cache/prometheus.XXXXXX")"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Everybody may download a package that is known; only root may ask what there is.
fetch() { (cd "$work" && apt-get download prometheus) >"$work/log" 2>&1; }
note "fetching Debian's package, once, into $target"
if ! fetch; then
  if [[ "$(id -u)" == 0 ]]; then
    apt-get update >"$work/update" 2>&1 || { tail -n 5 "$work/update" >&2; fail "apt-get update failed (its last lines are above)"; }
    fetch || { tail -n 5 "$work/log" >&2; fail "apt-get could not download prometheus (its last lines are above): $wanted"; }
  else
    tail -n 5 "$work/log" >&2
    fail "apt-get could not download prometheus (its last lines are above), and asking for news takes root: $wanted"
  fi
fi
dpkg-deb --extract "$work"/prometheus_*.deb "$work/unpacked"
usable "$work/unpacked/usr/bin" || fail "Debian's prometheus does not run on this machine: $wanted"

# A rename, so that no one ever sees half of it; another run may have been faster.
if ! usable "$target"; then
  rm -rf "$target"
  mv -T "$work/unpacked/usr/bin" "$target"
fi
echo "$target"
