# shellcheck shell=bash disable=SC2154  # $here is of cluster.sh
# The provider kind, to be sourced by hack/cluster.sh: only how the cluster comes to be and how images get into it. All
# else that the tests do is the same with every provider.

kind_lacks() {
  local lacks=()
  command -v kind >/dev/null || lacks+=("kind is missing (https://kind.sigs.k8s.io)")
  if ! command -v docker >/dev/null; then
    lacks+=("docker is missing (https://docs.docker.com/engine/install)")
  elif ! timeout 20 docker info >/dev/null 2>&1; then
    lacks+=("docker info fails: start the Docker daemon, or join the group docker")
  elif ! kind_privileged; then
    lacks+=("Docker may not run privileged containers here")
  fi
  join "${lacks[@]}"
}
join() {
  local all
  printf -v all '%s; ' "$@"
  echo "${all%; }"
}

# Starts a container from an empty image: when it may be privileged, all that goes wrong is that /none is not in it.
kind_privileged() {
  local image status=0
  image="$(tar -c -T /dev/null | docker import - 2>/dev/null)" || return 1
  docker run --rm --privileged "$image" /none >/dev/null 2>&1 || status=$?
  docker image rm "$image" >/dev/null 2>&1 || true
  ((status == 127))
}

# kind brings its own programs; kubectl is the caller's, or the one that is built.
kind_binaries() {
  if command -v kubectl >/dev/null; then dirname "$(command -v kubectl)"; else "$here/controlplane.sh"; fi
}

kind_name() { echo "praetor-$(cksum <<<"$1" | cut -d ' ' -f 1)"; }

# A node that does not come up is kept until its logs are taken.
kind_up() {
  mkdir -p "$1/logs"
  kind create cluster --name "$(kind_name "$1")" --config "$here/cluster/kind.yaml" --kubeconfig "$1/kubeconfig" \
    --wait 120s --retain >&2 || {
    kind_logs "$1" "$1/logs"
    fail "kind could not create the cluster (its lines are above)"
  }
}

kind_state() {
  kind get clusters 2>/dev/null | awk -v name="$(kind_name "$1")" '$0 == name { print "cluster " name }'
}

kind_load() {
  local dir="$1" tar
  shift
  for tar in "$@"; do
    kind load image-archive --name "$(kind_name "$dir")" "$tar" >&2 || fail "kind could not load $tar"
  done
}

kind_logs() { kind export logs --name "$(kind_name "$1")" "$2" >&2 || true; }

kind_stop() {
  kind delete cluster --name "$(kind_name "$1")" --kubeconfig "$1/kubeconfig" >&2 ||
    fail "kind could not delete the cluster $(kind_name "$1")"
}
