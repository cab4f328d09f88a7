#!/usr/bin/env bash
# What every other target needs: cargo, rustfmt, clippy (by rust-toolchain.toml) and a C compiler, which a few crates
# and the linker want. Installs what can be installed without a question; says in one line what cannot. Silent when
# all is there. Go is asked for by hack/controlplane.sh, and only when a control plane has to be built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { echo "tools: $*" >&2; exit 1; }

command -v cargo >/dev/null || fail "Rust is missing: see https://rustup.rs (the toolchain itself is chosen by rust-toolchain.toml)"

wanted="$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)"
if command -v rustup >/dev/null; then
  # With rustup the toolchain and its components may still have to be fetched; a fetch needs the network once.
  if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
    echo "tools: installing Rust $wanted with rustfmt and clippy" >&2
    rustup toolchain install "$wanted" --profile minimal --component rustfmt --component clippy >&2 || fail "rustup could not install Rust $wanted with rustfmt and clippy"
  fi
else
  for component in fmt clippy; do
    cargo "$component" --version >/dev/null 2>&1 || fail "cargo $component is missing and there is no rustup to install it: see https://rustup.rs"
  done
fi
needs="$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)"
has="$(cargo --version | awk '{ print $2 }')"
[[ "$(printf '%s\n' "$needs" "$has" | sort -V | head -n 1)" == "$needs" ]] || fail "Rust $needs or newer is needed, this is $has"

if ! command -v cc >/dev/null; then
  if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
    echo "tools: installing a C compiler" >&2
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev; } >&2 || fail "apt-get could not install gcc and libc6-dev"
  else
    fail "a C compiler (cc) is missing: install gcc and the C library's headers (Debian: apt-get install gcc libc6-dev)"
  fi
fi
