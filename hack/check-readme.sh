#!/usr/bin/env bash
# The README names every flag, variable and metric that there is, and none that there is not. Asks the binaries that
# `make binaries` has built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
built="${CARGO_TARGET_DIR:-target}/debug"

compare() { # what, the present ones; those of the README come on standard input
  local absent
  absent="$(diff <(sort -u <<<"$2") <(sort -u) | sed -n "s/^< /README lacks the $1 /p; s/^> /README has a $1 that is none: /p" || true)"
  [[ -z "$absent" ]] || { echo "$absent" >&2; exit 1; }
}
words() { grep -oE -- "$1" || true; }
section() { awk -v title="## $1" '/^## / { on = $0 == title } on' README.md; }

help="$("$built/praetor-manager" --help; "$built/praetor-manager" crds --help; "$built/praetor-agent" --help
  for command in install uninstall status doctor; do "$built/praetor-agent" "$command" --help; done)"
own='--(help|version)$'
compare flag "$(words '--[a-z][a-z-]+' <<<"$help" | grep -vE -- "$own")" < <(section 'Flags and variables' | words '--[a-z][a-z-]+' | grep -vE -- "$own")
compare variable "$(words '(APOLLO|POD)_[A-Z_]+' <<<"$help")" < <(section 'Flags and variables' | words '(APOLLO|POD)_[A-Z_]+')
compare metric "$(grep -rhoE '"praetor_[a-z_]+"' src | tr -d '"')" < <(section Metrics | words 'praetor_[a-z_]+')
echo "readme: flags, variables and metrics are what there is"
