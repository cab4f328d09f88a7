#!/usr/bin/env bash
# Provides prometheus and promtool for the checks of config/monitoring. The last line of stdout, and the only one, is
# the folder that holds them; progress goes to stderr. Sources, in this order:
#   1. $PROMETHEUS_ASSETS, when set: checked, never filled in from elsewhere;
#   2. the PATH;
#   3. the cache, ${XDG_CACHE_HOME:-$HOME/.cache}/praetor/prometheus/;
#   4. Debian's package, unpacked into the cache: nothing is installed and no service starts.
set -euo pipefail
# shellcheck source=hack/debian.sh
source "$(dirname "${BASH_SOURCE[0]}")/debian.sh"

note() { printf 'prometheus: %s\n' "$*" >&2; }
give_up() { note "error: $*"; exit 1; }
usable() { "$1/prometheus" --version >/dev/null 2>&1 && "$1/promtool" --version >/dev/null 2>&1; }
wanted="install Prometheus 2.40 or newer (Debian: apt-get install --no-install-recommends prometheus), or set PROMETHEUS_ASSETS to a folder with prometheus and promtool"

if [[ -n "${PROMETHEUS_ASSETS:-}" ]]; then
  for binary in prometheus promtool; do
    [[ -x "$PROMETHEUS_ASSETS/$binary" ]] ||
      give_up "PROMETHEUS_ASSETS=$PROMETHEUS_ASSETS holds no executable $binary; unset it to use the PATH, the cache or a package"
  done
  usable "$PROMETHEUS_ASSETS" || give_up "the programs in PROMETHEUS_ASSETS=$PROMETHEUS_ASSETS do not run on this machine"
  cd "$PROMETHEUS_ASSETS" && pwd
  exit 0
fi

if found="$(command -v prometheus)" && usable "$(dirname "$found")"; then
  dirname "$found"
  exit 0
fi

target="$(cache_folder)/prometheus"
usable "$target" || unpack_package prometheus "prometheus and promtool are" "$target"
echo "$target"
