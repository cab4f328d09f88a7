#!/usr/bin/env bash
# Tests what runs processes against the real thing: in a throw-away switch (hack/switch.sh) whose first process is
# systemd, so that nothing of this machine is touched. All rules of e2e/backends, then what must hold after a shutdown in
# order and after a loss of power.
#   backends.sh            all of it
#   backends.sh RULE       only the rules with this in their names, and no reboots
#   backends.sh --idle     what looking after ten processes costs while nothing happens
# Exit code 3, and only then: no switch can run on this machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
note() { printf 'backends: %s\n' "$*" >&2; }
fail() { note "error: $*"; exit 1; }
(($# <= 1)) || fail "usage: hack/backends.sh [RULE | --idle]"
rule="${1:-}"

why="$(hack/switch.sh lacks)" || exit $?
if [[ -n "$why" ]]; then
  note "not tested here: $why"
  exit 3
fi
program="$(cargo test --locked --no-default-features --features agent --test backends --no-run 2>&1 | tee /dev/stderr | sed -n 's/.*(\(.*\/backends-[0-9a-f]*\))$/\1/p')"
[[ -x "$program" ]] || fail "cargo did not say where the test is"
work="$(mktemp -d)"
trap 'hack/switch.sh down "$work/switch"; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

hack/switch.sh up "$work/switch"
hack/switch.sh put "$work/switch" "$program" /opt/backends
inside() { # further variables..., then --, then the test's arguments
  local variables=()
  while [[ "$1" != -- ]]; do variables+=("$1"); shift; done
  shift
  hack/switch.sh exec "$work/switch" env PRAETOR_BACKENDS=systemd "${variables[@]}" /opt/backends --nocapture --test-threads=1 "$@"
}
note "in a switch with $(hack/switch.sh exec "$work/switch" systemctl --version | head -n 1)"
if [[ "$rule" == --idle ]]; then
  inside -- --ignored --exact systemd::idle_it_costs_next_to_nothing
  exit 0
fi
inside ${rule:+PRAETOR_RULE="$rule"} -- systemd
[[ -z "$rule" ]] || exit 0
for how in reboot crash; do
  inside -- --ignored --exact systemd::before_a_reboot
  hack/switch.sh "$how" "$work/switch"
  inside PRAETOR_HOW="$how" -- --ignored --exact systemd::after_a_reboot
done
note "all rules hold, also after a reboot and a loss of power"
