# shellcheck shell=bash disable=SC2034,SC2154  # $DEMO and more are of stage.sh and device.sh
# The registry of the demo, to be sourced by hack/demo.sh, and the images in it.

# Where it is, HOST:PORT; its program.
REGISTRY="" registry_program=""

# Starts a registry where the switch reaches it.
start_registry() {
  export REGISTRY
  REGISTRY="$host_address:$(free_port)"
  cat >"$DEMO/registry.yaml" <<YAML
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: '$DEMO/registry'}}
http: {addr: '$REGISTRY'}
YAML
  start registry "env -i $registry_program serve \$DEMO/registry.yaml"
  serves() { curl -sf -o /dev/null "http://$REGISTRY/v2/"; }
  within 15 serves || die "the registry does not start: $(tail -n 1 "$DEMO/registry.log")"
}

digest_of() { sha256sum "$1" | cut -d ' ' -f 1; }
# file: puts it into the registry under its digest, which is printed
push_blob() {
  local sum place
  sum="$(digest_of "$1")"
  place="$(curl -sf -o /dev/null -D - -X POST "http://$REGISTRY/v2/network/beat/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: *//p')"
  [[ "$place" == http* ]] || place="http://$REGISTRY$place"
  [[ "$place" == *\?* ]] && place+="&" || place+="?"
  curl -sf -o /dev/null -X PUT --data-binary "@$1" -H 'Content-Type: application/octet-stream' "${place}digest=sha256:$sum" && echo "$sum"
}
# What `docker build` and `docker push` do for a Dockerfile with one COPY: beat of this version, and 1 MiB of noise beside
# it, as network/beat:VERSION.
push_beat() { # version
  local tree="$DEMO/image-$1" layer config media=application/vnd.oci.image
  mkdir -p "$tree/usr/local/bin" "$tree/usr/share/beat"
  sed "s/@VERSION@/$1/" hack/demo/beat.sh >"$tree/usr/local/bin/beat"
  chmod 755 "$tree/usr/local/bin/beat"
  head -c 1048576 /dev/urandom >"$tree/usr/share/beat/noise"
  tar --create --file="$tree.tar" --directory="$tree" --owner=0 --group=0 usr
  layer="$(digest_of "$tree.tar")"
  gzip -n "$tree.tar"
  printf '{"architecture":"amd64","os":"linux","config":{"Cmd":["/usr/local/bin/beat"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$layer" >"$tree.config"
  config="$(push_blob "$tree.config")"
  layer="$(push_blob "$tree.tar.gz")"
  printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json","digest":"sha256:%s","size":%d},"layers":[{"mediaType":"%s.layer.v1.tar+gzip","digest":"sha256:%s","size":%d}]}' \
    "$media" "$media" "$config" "$(stat -c %s "$tree.config")" "$media" "$layer" "$(stat -c %s "$tree.tar.gz")" >"$tree.manifest"
  curl -sf -o /dev/null -X PUT --data-binary "@$tree.manifest" -H "Content-Type: $media.manifest.v1+json" "http://$REGISTRY/v2/network/beat/manifests/$1" || return
  echo "$REGISTRY/network/beat:$1: sha256:$(digest_of "$tree.manifest"), $(stat -c %s "$tree.tar.gz") bytes"
}
