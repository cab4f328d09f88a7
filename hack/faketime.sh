#!/usr/bin/env bash
# Provides libfaketime for tests in which wall clocks are wrong. The last line of stdout, and the only one, is the path
# of the library; progress goes to stderr. Exit code 3: there is none to be had here. Sources, in this order:
#   1. $LIBFAKETIME, when set: checked, never filled in from elsewhere;
#   2. where Debian installs it;
#   3. the cache, ${XDG_CACHE_HOME:-$HOME/.cache}/praetor/libfaketime/;
#   4. Debian's package, unpacked into the cache: nothing is installed.
set -euo pipefail
# shellcheck source=hack/debian.sh
source "$(dirname "${BASH_SOURCE[0]}")/debian.sh"

# The one for programs with threads.
library=libfaketimeMT.so.1
note() { printf 'faketime: %s\n' "$*" >&2; }
give_up() { note "error: $*"; exit 3; }
# The loader only warns of a library that it cannot load, so the date has to tell.
works() { [[ -f "$1" && "$(LD_PRELOAD="$1" FAKETIME="@2001-02-03 04:05:06" date +%Y 2>/dev/null)" == 2001 ]]; }
usable() { works "$1/$library"; }
wanted="install libfaketime 0.9.10 or newer (Debian: apt-get install --no-install-recommends libfaketime), or set LIBFAKETIME to the path of $library"

if [[ -n "${LIBFAKETIME:-}" ]]; then
  works "$LIBFAKETIME" || { note "error: LIBFAKETIME=$LIBFAKETIME is no libfaketime that works here"; exit 1; }
  echo "$LIBFAKETIME"
  exit 0
fi

folder="usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo "$(uname -m)-linux-gnu")/faketime"
target="$(cache_folder)/libfaketime"
if usable "/$folder"; then
  echo "/$folder/$library"
  exit 0
fi
usable "$target" || unpack_package libfaketime "$library is" "$target" "$folder"
echo "$target/$library"
