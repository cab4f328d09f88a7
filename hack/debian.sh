# shellcheck shell=bash
# Sourced: files of a Debian package, unpacked into the cache where nobody has installed them. Nothing is installed and
# no service starts. The caller has `note MESSAGE`, which says how it goes, `give_up MESSAGE`, which ends it, `usable
# FOLDER`, whether what is in a folder works on this machine, and in $wanted what to do where they cannot be had.

# The folder of the cache for big things that were built or fetched.
cache_folder() {
  printf '%s/praetor\n' "${XDG_CACHE_HOME:-${HOME:?is needed to find the cache (or set XDG_CACHE_HOME)}/.cache}"
}

# unpack_package PACKAGE PROGRAMS TARGET [FOLDER]: a folder of the package, usr/bin, becomes TARGET. PROGRAMS: what is
# missing, in words.
unpack_package() {
  local package="$1" programs="$2" target="$3" folder="${4:-usr/bin}"
  if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    give_up "$programs missing: $wanted"
  fi
  mkdir -p "$(dirname "$target")"
  work="$(mktemp -d "$target.XXXXXX")"
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP

  # Everybody may download a package that is known; only root may ask what there is.
  fetch() { (cd "$work" && apt-get download "$package") >"$work/log" 2>&1; }
  note "fetching Debian's package, once, into $target"
  if ! fetch; then
    if [[ "$(id -u)" == 0 ]]; then
      apt-get update >"$work/update" 2>&1 || { tail -n 5 "$work/update" >&2; give_up "apt-get update failed (its last lines are above)"; }
      fetch || { tail -n 5 "$work/log" >&2; give_up "apt-get could not download $package (its last lines are above): $wanted"; }
    else
      tail -n 5 "$work/log" >&2
      give_up "apt-get could not download $package (its last lines are above), and asking for news takes root: $wanted"
    fi
  fi
  dpkg-deb --extract "$work/$package"_*.deb "$work/unpacked"
  usable "$work/unpacked/$folder" || give_up "Debian's $package does not run on this machine: $wanted"

  # A rename, so that no one ever sees half of it; another run may have been faster.
  if ! usable "$target"; then
    rm -rf "$target"
    mv -T "$work/unpacked/$folder" "$target"
  fi
}
