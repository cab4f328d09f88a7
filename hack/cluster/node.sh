#!/usr/bin/env bash
# The first process of a local node, started by hack/cluster/local.sh in namespaces of its own for processes, mounts and
# the network: nothing that is mounted or set here is seen outside. It sets these up, starts the programs of a node and
# of its control plane, and ends, and all with it, when one of them ends.
#   node.sh DIR CGROUP CNI-FOLDER     descriptor 8 is the network of the machine; the programs are in PATH
#
# Differences from a cluster of everyday use: the bridgeless network enforces no NetworkPolicy; there is no DNS, and
# nothing of Praetor needs one (the apiserver is found by KUBERNETES_SERVICE_HOST, replicas find each other by the
# addresses in their Leases); the kubelet trusts whoever reaches it, which only this machine and its pods can.
set -euo pipefail
export LC_ALL=C
dir="$1" cgroup="$2" cni="$3"
fail() { echo "error: $*"; exit 1; }

# --- Mounts: short names for what may lie anywhere, and places of its own for what programs write at fixed ones ---

mount -t tmpfs -o mode=0755 tmpfs "$dir/run"
mkdir -p "$dir"/run/{node,programs,sysctl}
mount --bind "$dir" "$dir/run/node"
IFS=: read -ra folders <<<"$PATH"
path=""
for i in 0 1; do
  mkdir "$dir/run/programs/$i"
  mount --bind "${folders[$i]}" "$dir/run/programs/$i"
  path+="/run/programs/$i:"
done
# Without its own list of mounts, which mount keeps in /run and would not find again.
mount --no-mtab --move "$dir/run" /run
export PATH="$path$PATH"
cd /run/node
mount -t tmpfs -o mode=0755 tmpfs /var/lib
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount --bind /run/node/log /var/log
# The kubelet wants these to be so and would set them for the whole machine: it finds them as it likes them.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  echo "${setting#*=}" >"/run/sysctl/${setting//\//.}"
  mount --bind "/run/sysctl/${setting//\//.}" "/proc/sys/${setting%=*}"
done
# A layered file system where DIR lies on one that can carry it; copies where not.
snapshotter=native
mkdir -p try/{lower,upper,work,merged}
if mount -t overlay -o lowerdir=try/lower,upperdir=try/upper,workdir=try/work overlay try/merged 2>/dev/null; then
  umount try/merged
  snapshotter=overlayfs
fi
rm -rf try

# --- Network: a link to the machine, which routes the pods' and the Services' addresses to it ---

machine() { nsenter --net=/proc/self/fd/8 "$@"; }
taken() { [[ -n "$(machine ip -4 route show root "$1")" ]]; }
for ((n = 0; n < 250; n++)); do
  link="10.219.$n" pods="10.220.$n.0/24" services="10.221.$n"
  if taken "$link.0/30" || taken "$pods" || taken "$services.0/24"; then continue; fi
  ip link add eth0 type veth peer name "prtr$n"
  # Whoever else wants this name has it already, or cannot have it now.
  ! ip link set "prtr$n" netns /proc/self/fd/8 2>/dev/null || break
  ip link delete eth0
done
((n < 250)) || fail "no free network: 250 of 10.219.n.0/30 are in use"
node="$link.2"
machine ip link set "prtr$n" alias "$cgroup"
machine ip address add "$link.1/30" dev "prtr$n"
machine ip link set "prtr$n" up
ip link set lo up
ip address add "$node/30" dev eth0
ip link set eth0 up
ip route add default via "$link.1"
machine ip route add "$pods" via "$node"
machine ip route add "$services.0/24" via "$node"
echo 1 >/proc/sys/net/ipv4/ip_forward
exec 8<&-

# --- Who is who ---

# shellcheck source=hack/keys.sh
source /run/node/keys.sh
signing_key >pki/service-account.pem
# user, token, certificate authority: how to reach the apiserver
kubeconfig() {
  cat <<YAML
apiVersion: v1
kind: Config
current-context: praetor
clusters: [{name: praetor, cluster: {server: 'https://$node:6443', $3}}]
contexts: [{name: praetor, context: {cluster: praetor, user: '$1'}}]
users: [{name: '$1', user: {token: '$2'}}]
YAML
}
admin="$(random_hex)"
echo "$admin,admin,admin,\"system:masters\"" >pki/tokens.csv
for user in system:kube-controller-manager system:kube-scheduler system:kube-proxy system:node:praetor; do
  token="$(random_hex)" group=""
  [[ "$user" != system:node:* ]] || group=',"system:nodes"'
  echo "$token,$user,$user$group" >>pki/tokens.csv
  kubeconfig "$user" "$token" "certificate-authority: /run/node/pki/apiserver.crt" >"pki/${user##*:}.kubeconfig"
done

# --- Settings ---

cat >containerd.toml <<TOML
version = 2
root = "/run/node/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "praetor.local/pause:dev"
  # Without CAP_SYS_RESOURCE nothing may be made less likely to be killed than its parent.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$snapshotter"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$cni"
    conf_dir = "/run/node/cni"
TOML
mkdir -p cni
# Point to point as kind has it: every packet of a pod passes the node's rules, also to a pod beside it.
cat >cni/10-praetor.conflist <<JSON
{"cniVersion": "0.4.0", "name": "praetor", "plugins": [
  {"type": "ptp", "ipMasq": false,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$pods"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
cat >kubelet.yaml <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $node
containerRuntimeEndpoint: unix:///run/containerd.sock
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup
cgroupsPerQOS: true
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
podLogsDir: /run/node/pods
volumePluginDir: /run/plugins
# Nothing listens there: a lookup is refused at once.
clusterDNS: [$node]
# A full disk or a busy machine is no reason to lose the images under test.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}
YAML

# --- Programs ---

# name, command: logs into logs/NAME.log
declare -A names=()
start() {
  local name="$1"
  shift
  "$@" >"logs/$name.log" 2>&1 </dev/null &
  names[$!]="$name"
}
start etcd etcd --data-dir=etcd --log-level=warn --unsafe-no-fsync \
  --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
  --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
  --initial-cluster=default=http://127.0.0.1:2380
start apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
  --bind-address=0.0.0.0 --advertise-address="$node" --secure-port=6443 \
  --cert-dir=pki --token-auth-file=pki/tokens.csv --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
  --service-cluster-ip-range="$services.0/24" --service-account-issuer=https://kubernetes.default.svc \
  --service-account-key-file=pki/service-account.pem --service-account-signing-key-file=pki/service-account.pem \
  --kubelet-preferred-address-types=InternalIP --allow-privileged=true --profiling=false
start containerd containerd --config containerd.toml

# Ends with what has ended when a program ends; a container's process that falls to this one is not one of them.
watch() {
  local ended status=0
  wait -n -p ended "${!names[@]}" || status=$?
  fail "${names[$ended]} ended with $status: $(tail -n 1 "logs/${names[$ended]}.log")"
}
# what, at most seconds, command
await() {
  local what="$1" deadline=$((SECONDS + $2)) pid
  shift 2
  until "$@" >/dev/null 2>&1; do
    for pid in "${!names[@]}"; do kill -0 "$pid" 2>/dev/null || watch; done
    ((SECONDS < deadline)) || fail "$what was not there in time"
    sleep 0.1
  done
}
ctr() { command ctr --address /run/containerd.sock --namespace k8s.io "$@"; }
await containerd 60 ctr version
ctr images import pause.tar
rm pause.tar
await "the apiserver's certificate" 60 test -s pki/apiserver.crt
kubeconfig admin "$admin" "certificate-authority-data: '$(base64 -w 0 pki/apiserver.crt)'" >kubeconfig.new
await "the apiserver" 60 kubectl --kubeconfig kubeconfig.new get --raw /readyz
mv kubeconfig.new kubeconfig

start controller-manager kube-controller-manager --kubeconfig=pki/kube-controller-manager.kubeconfig \
  --use-service-account-credentials=true --service-account-private-key-file=pki/service-account.pem \
  --root-ca-file=pki/apiserver.crt --leader-elect=false \
  --flex-volume-plugin-dir=/run/plugins --profiling=false
start scheduler kube-scheduler --kubeconfig=pki/kube-scheduler.kubeconfig --leader-elect=false --profiling=false
start kubelet kubelet --config=kubelet.yaml --kubeconfig=pki/praetor.kubeconfig --root-dir=/run/node/kubelet \
  --hostname-override=praetor --node-ip="$node"
start kube-proxy kube-proxy --kubeconfig=pki/kube-proxy.kubeconfig --hostname-override=praetor \
  --proxy-mode=iptables --cluster-cidr="$pods" \
  --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0
# Who removes DIR by hand wants no cluster either, and could not stop it any more.
start folder bash -c 'while [[ -f node.pid ]]; do sleep 5; done; echo "DIR is gone"'
watch
