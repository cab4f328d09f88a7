# shellcheck shell=bash disable=SC2154  # $here is of cluster.sh, $kubernetes of go-tools.sh
# The provider local, to be sourced by hack/cluster.sh. A node is the process tree of hack/cluster/node.sh in namespaces
# of its own for processes, mounts and the network. So it needs no port of this machine, changes none of its network
# rules, mounts and settings, and when its first process is killed, all of it is gone, containers too. What remains by
# nature is its files, which are in DIR, and its control groups, which have a name of their own.

# Command (or file), and the Debian package that brings it.
local_needs=(
  unshare:util-linux nsenter:util-linux mount:mount ip:iproute2 iptables:iptables conntrack:conntrack
  containerd:containerd ctr:containerd runc:runc
)
local_cni() {
  local folder
  for folder in /usr/lib/cni /opt/cni/bin /usr/libexec/cni; do
    [[ ! -x "$folder/ptp" || ! -x "$folder/host-local" || ! -x "$folder/portmap" ]] || { echo "$folder"; return; }
  done
}
# The packages that are still to be installed.
local_packages() {
  local need
  {
    for need in "${local_needs[@]}"; do command -v "${need%%:*}" >/dev/null || echo "${need#*:}"; done
    [[ -n "$(local_cni)" ]] || echo containernetworking-plugins
  } | sort -u | paste -sd ' '
}

local_lacks() {
  local lacks=() packages fault controller
  ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || lacks+=("bash 5.1 or newer is needed, this is $BASH_VERSION")
  packages="$(local_packages)"
  if (($(id -u) != 0)); then
    lacks+=("root is needed (sudo)")
    [[ -z "$packages" ]] || lacks+=("missing: $packages (Debian: apt-get install $packages)")
  else
    [[ -z "$packages" ]] || command -v apt-get >/dev/null || lacks+=("missing, and there is no apt-get to install them: $packages")
    # What the node will do first, tried out.
    ! command -v unshare >/dev/null || unshare --mount --net --pid --ipc --fork --mount-proc sh -c \
      'mount -t tmpfs none /mnt && { ! command -v ip || ip link add eth0 type veth peer name eth1; }' >/dev/null 2>&1 ||
      lacks+=("this root may not make namespaces, mounts or veth links (CAP_SYS_ADMIN and CAP_NET_ADMIN are needed)")
    for controller in memory cpu pids; do
      local_controls "$controller" || lacks+=("there is no cgroup controller $controller to use below /sys/fs/cgroup")
    done
  fi
  if ! local_usable "$(local_folder)"; then
    fault="$(go_fault)"
    [[ -z "$fault" ]] || lacks+=("$fault")
  fi
  join "${lacks[@]}"
}

# Whether a control group can be made below the root for this controller, in either version of control groups. In the
# second one, only the machine's own root may switch a controller on while processes are in it.
local_controls() {
  local root=/sys/fs/cgroup
  if [[ -f "$root/cgroup.controllers" ]]; then
    [[ -w "$root/cgroup.subtree_control" ]] && grep -qw "$1" "$root/cgroup.controllers" &&
      { [[ ! -e "$root/cgroup.type" ]] || grep -qw "$1" "$root/cgroup.subtree_control"; }
  else
    [[ -w "$root/$1/cgroup.procs" ]]
  fi
}

local_folder() { echo "$(cache_folder)/node-$kubernetes"; }
local_usable() {
  local binary
  for binary in kubelet kube-proxy kube-controller-manager kube-scheduler; do
    "$1/$binary" --version >/dev/null 2>&1 || return 1
  done
  [[ -x "$1/pause" ]]
}
local_binaries() {
  local packages control
  packages="$(local_packages)"
  if [[ -n "$packages" ]]; then
    note "installing $packages"
    # shellcheck disable=SC2086  # several words
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends --no-remove $packages; } >&2 ||
      fail "apt-get could not install $packages"
  fi
  control="$("$here/controlplane.sh")"
  cached_build "node-$kubernetes" local_usable "the programs of a node $kubernetes (about 5 minutes of two cores)" \
    k8s.io/kubernetes/cmd/{kubelet,kube-proxy,kube-controller-manager,kube-scheduler} praetor.local/hack/controlplane/pause
  echo "$control:$(local_folder)"
}

local_up() {
  local dir="$1" deadline=$((SECONDS + 180)) stage="" before
  mkdir -p "$dir"/{logs,run,etcd,pki,kubelet,containerd,pods,log}
  chmod 0700 "$dir"
  echo "praetor-$(head -c 6 /dev/urandom | od -An -v -tx1 | tr -d ' \n')" >"$dir/cgroup"
  local_cgroups "$(<"$dir/cgroup")"
  cp "$here/keys.sh" "$dir"
  "$here/cluster/image.sh" "$dir/pause.tar" praetor.local/pause:dev "$(local_folder)/pause"
  # It writes its pid before it becomes the node, so that it can be found whenever this script is killed. Descriptor 8
  # is this machine's network, in which the node puts the other end of its link. Of the caller's environment it sees
  # nothing: a proxy or a setting of Go's would change what runs.
  # shellcheck disable=SC2016  # for the inner bash
  setsid bash -c 'echo "$$ $(awk "{ sub(/.*\\) /, \"\"); print \$20 }" "/proc/$$/stat")" >"$1/node.pid.new"
    mv "$1/node.pid.new" "$1/node.pid"
    exec 8</proc/self/ns/net
    exec env -i PATH="$PATH" HOME=/root unshare --mount --propagation slave --net --pid --ipc \
      --fork --kill-child --mount-proc bash "$2/cluster/node.sh" "$1" "$(<"$1/cgroup")" "$3"' \
    node "$dir" "$here" "$(local_cni)" >"$dir/logs/node.log" 2>&1 </dev/null &
  until [[ -f "$dir/node.pid" ]]; do
    ((SECONDS < deadline)) || fail "no process for the node could be started: $(tail -n 1 "$dir/logs/node.log")"
    sleep 0.02
  done
  while :; do
    before="$stage"
    stage="$(local_stage "$dir")"
    [[ "$stage" == "$before" || "$stage" == ready ]] || note "waiting for $stage"
    [[ "$stage" != ready ]] || return 0
    [[ -n "$(local_state "$dir")" ]] || fail "the node ended: $(tail -n 3 "$dir/logs/node.log" | paste -sd ' ')"
    ((SECONDS < deadline)) || fail "waited for $stage for too long"
    sleep 0.2
  done
}
# Control groups under which the kubelet makes those of its pods: one, or one for each controller in the first version.
local_cgroups() {
  local root=/sys/fs/cgroup controller folder
  if [[ -f "$root/cgroup.controllers" ]]; then
    for controller in cpu cpuset memory pids hugetlb; do
      if ! grep -qw "$controller" "$root/cgroup.controllers" || grep -qw "$controller" "$root/cgroup.subtree_control"; then continue; fi
      echo "+$controller" >"$root/cgroup.subtree_control" || fail "the cgroup controller $controller cannot be switched on below $root"
    done
    mkdir "$root/$1"
  else
    for folder in "$root"/*/; do mkdir -p "$folder$1"; done
  fi
}
# What is still to come, asked from outside as the tests will.
local_stage() {
  local kubectl=(kubectl --kubeconfig "$1/kubeconfig" --request-timeout=5s)
  [[ -f "$1/kubeconfig" ]] || { echo "the apiserver"; return; }
  NO_PROXY='*' "${kubectl[@]}" get --raw /readyz >/dev/null 2>&1 || { echo "the apiserver"; return; }
  NO_PROXY='*' "${kubectl[@]}" wait node --all --for=condition=Ready --timeout=1s >/dev/null 2>&1 || { echo "the node"; return; }
  NO_PROXY='*' "${kubectl[@]}" get -n default serviceaccount/default configmap/kube-root-ca.crt >/dev/null 2>&1 ||
    { echo "the controllers"; return; }
  echo ready
}

# Something when the node runs: its process, with the start time so that no other one is mistaken for it.
local_state() {
  local pid start
  [[ -f "$1/node.pid" ]] || return 0
  read -r pid start <"$1/node.pid"
  [[ "$(awk '{ sub(/.*\) /, ""); if ($1 != "Z") print $20 }' "/proc/$pid/stat" 2>/dev/null)" == "$start" ]] || return 0
  echo "process $pid"
}
# The pid by which this machine knows the node's first process.
local_first() {
  local pid
  [[ -n "$(local_state "$1")" ]] || return 0
  read -r pid _ <"$1/node.pid"
  cut -d ' ' -f 1 "/proc/$pid/task/$pid/children" 2>/dev/null || true
}

local_load() {
  local dir="$1" tar first
  shift
  first="$(local_first "$dir")"
  for tar in "$@"; do
    nsenter --target "$first" --mount --net --pid -- ctr --address /run/containerd.sock --namespace k8s.io images import - <"$tar" >&2 ||
      fail "containerd could not load $tar: is it a file of docker save?"
  done
}

local_logs() {
  cp "$1"/logs/*.log "$2" 2>/dev/null || true
  cp -r "$1/pods" "$2/pods" 2>/dev/null || true
}

local_stop() {
  local dir="$1" cgroup="" pid first file deadline=$((SECONDS + 30))
  [[ ! -f "$dir/cgroup" ]] || cgroup="$(<"$dir/cgroup")"
  [[ "$cgroup" == praetor-* ]] || return 0
  # Frozen processes of the first version of control groups do not even die.
  for file in /sys/fs/cgroup/freezer/"$cgroup"/{,*/}freezer.state; do
    [[ ! -f "$file" ]] || echo THAWED >"$file" 2>/dev/null || true
  done
  # The end of the first process is the end of all others, and it is waited for before unshare ends.
  while [[ -n "$(local_state "$dir")" ]]; do
    first="$(local_first "$dir")"
    read -r pid _ <"$dir/node.pid"
    kill -KILL "${first:-$pid}" 2>/dev/null || true
    ((SECONDS < deadline)) || fail "process $pid of $dir does not end"
    sleep 0.05
  done
  until local_clean "$cgroup"; do
    ((SECONDS < deadline)) || fail "control groups or the network link of $cgroup could not be removed"
    sleep 0.1
  done
}
# Control groups and this machine's end of the link; the link goes with the node, but not at once.
local_clean() {
  local folder link
  for folder in /sys/fs/cgroup/"$1" /sys/fs/cgroup/*/"$1"; do
    [[ ! -d "$folder" ]] || find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null || return 1
  done
  link="$(ip -o link show | awk -v name="$1" '$0 ~ "alias " name "( |$)" { sub(/@.*/, "", $2); sub(/:$/, "", $2); print $2 }')"
  [[ -z "$link" ]] || ip link delete "$link" 2>/dev/null || return 1
}
