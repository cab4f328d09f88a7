#!/usr/bin/env bash
# Builds both binaries for images: release, static, each with its own features only, the same bytes wherever and
# whenever it runs with one Rust and one C library. Lays out the images' file systems as DIR/manager and DIR/agent. The
# Dockerfile runs it in its build stage, hack/images.sh on this machine.
#   static.sh DIR
# SOURCE_DATE_EPOCH is the time of all files (0 when unset), CA_BUNDLE the certificate authorities for the agent
# (Debian's file when unset).
set -euo pipefail
umask 022
fail() { echo "static: $*" >&2; exit 1; }
[[ $# == 1 && -n "$1" ]] || fail "say which folder to write: hack/static.sh DIR"
mkdir -p "$1"
out="$(cd "$1" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bundle="${CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}"
[[ -s "$bundle" ]] || fail "no certificate authorities in $bundle: install ca-certificates, or set CA_BUNDLE to a PEM file"
command -v cargo >/dev/null || fail "Rust is missing: see https://rustup.rs"
triple="$(rustc -vV | sed -n 's/^host: //p')"
[[ "$triple" == *-linux-gnu ]] || fail "Rust builds for $triple here; static binaries are made for *-linux-gnu only"
epoch="${SOURCE_DATE_EPOCH:-0}"
[[ "$epoch" =~ ^[0-9]+$ ]] || fail "SOURCE_DATE_EPOCH=$epoch is no number of seconds"

# Without the places of this machine in them. The target is named although it is the host's own, so that these flags do
# not reach build scripts and macros, which cannot be static.
cargo_home="${CARGO_HOME:-$HOME/.cargo}"
export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$PWD=/praetor"
build() { # name
  cargo build --locked --release --target "$triple" --no-default-features --features "$1" --bin "praetor-$1" >&2
  local built="${CARGO_TARGET_DIR:-target}/$triple/release/praetor-$1"
  # A program that asks for a loader would not start in an empty image.
  if LC_ALL=C readelf --program-headers "$built" | grep -q INTERP; then
    fail "$built is not static: are the C library's static parts missing (Debian: apt-get install libc6-dev)?"
  fi
  rm -rf "${out:?}/$1"
  install -D -m 0555 "$built" "$out/$1/praetor-$1"
}
build agent
build manager
install -D -m 0444 "$bundle" "$out/agent/etc/ssl/certs/ca-certificates.crt"
install -d -m 1777 "$out/agent/var/lib/apollo/agent"
find "$out/manager" "$out/agent" -exec touch --no-dereference --date="@$epoch" {} +
