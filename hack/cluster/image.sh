#!/usr/bin/env bash
# Writes an image of static programs as `docker save` would, without Docker:
#   hack/cluster/image.sh TAR NAME:TAG FILE...
# The files lie in the root of the image with their own names; the first one is what a container of it runs, as user
# 65532. The same files give the same bytes.
set -euo pipefail
export LC_ALL=C
fail() { echo "image: $*" >&2; exit 1; }
(($# >= 3)) || fail "usage: hack/cluster/image.sh TAR NAME:TAG FILE..."
tar="$1" name="$2"
shift 2
[[ "$name" =~ ^[a-z0-9][a-z0-9._/-]*:[A-Za-z0-9._-]+$ ]] || fail "$name is no NAME:TAG"
case "$(uname -m)" in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) fail "no image for $(uname -m) is known: x86_64 and aarch64 are" ;;
esac

work="$(mktemp -d "$tar.XXXXXX")"
trap 'rm -rf "$work"' EXIT
mkdir "$work/root" "$work/image"
for file in "$@"; do
  [[ -f "$file" && -x "$file" ]] || fail "$file is no executable file"
  install -m 0755 "$file" "$work/root/"
done
pack() { # folder, where to
  tar --create --file "$2" --directory "$1" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner .
}
pack "$work/root" "$work/image/layer.tar"
layer="$(sha256sum "$work/image/layer.tar" | cut -d ' ' -f 1)"
cat >"$work/image/config.json" <<JSON
{"architecture":"$architecture","os":"linux","config":{"User":"65532:65532","Entrypoint":["/${1##*/}"],"WorkingDir":"/"},
 "rootfs":{"type":"layers","diff_ids":["sha256:$layer"]}}
JSON
cat >"$work/image/manifest.json" <<JSON
[{"Config":"config.json","RepoTags":["$name"],"Layers":["layer.tar"]}]
JSON
pack "$work/image" "$work/done.tar"
mv "$work/done.tar" "$tar"
