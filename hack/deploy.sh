#!/usr/bin/env bash
# Brings Praetor into the cluster that kubectl points at, and out of it again.
#   deploy.sh install     the CustomResourceDefinitions alone
#   deploy.sh deploy      all of it; makes the two Secrets when they are not there (and never touches them again); waits
#                         until the replicas are ready, or says in one line why they do not become so
#   deploy.sh undeploy    the manager, its rights and what any component made; the CRDs, all objects, the namespace and
#                         the Secrets stay
#   deploy.sh uninstall   everything. Says first how much that is, and wants a yes: typed, or CONFIRM=yes
#   deploy.sh render      prints all manifests as `deploy` applies them
# IMAGE (praetor-manager:dev), NAMESPACE (praetor-system), COMPONENTS (folders of config/components, with blanks
# between), TIMEOUT (seconds that `deploy` waits, 120), KUBECTL (kubectl, else the one of hack/controlplane.sh).
# A namespace that was there before and does not carry Praetor's label is somebody else's: it is not labelled, not held
# to a Pod Security level, and not deleted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
note() { printf '%s: %s\n' "$verb" "$*" >&2; }
fail() { note "$*"; exit 1; }

verb="${1:-}"
case "$verb" in
  install | deploy | undeploy | uninstall | render) ;;
  *) verb=deploy.sh; fail "say what to do: install, deploy, undeploy, uninstall or render" ;;
esac
image="${IMAGE:-praetor-manager:dev}"
namespace="${NAMESPACE:-praetor-system}"
timeout="${TIMEOUT:-120}"
[[ "$namespace" =~ ^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$ ]] || fail "NAMESPACE=$namespace is no name for a namespace: use lower-case letters, digits and dashes"
[[ "$timeout" =~ ^[1-9][0-9]*$ ]] || fail "TIMEOUT=$timeout is no number of seconds"
# NAME[:TAG][@DIGEST]; what kustomize's own field for images would have to be told in parts.
[[ "$image" =~ ^[A-Za-z0-9][A-Za-z0-9._/:-]*(@sha256:[0-9a-f]{64})?$ ]] || fail "IMAGE=$image is no name of an image: use NAME:TAG, such as registry.example.com/praetor-manager:0.1.0"
for component in ${COMPONENTS:-}; do
  [[ -f "config/components/$component/kustomization.yaml" ]] || fail "COMPONENTS names $component, which is none: there are $(cd config/components && echo *)"
done

kubectl="${KUBECTL:-}"
if [[ -z "$kubectl" ]]; then
  if command -v kubectl >/dev/null; then kubectl=kubectl; else kubectl="$(hack/controlplane.sh)/kubectl"; fi
fi
command -v "$kubectl" >/dev/null || fail "kubectl is missing: see https://kubernetes.io/docs/tasks/tools"
k() { "$kubectl" "$@"; }
n() { k --namespace "$namespace" "$@"; }

work="$(mktemp -d)"
overlay=""
trap 'rm -rf "$work" ${overlay:+"$overlay"}' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Never in a subshell: what clears up has to learn the folder. kustomize takes relative paths only, so the overlay lies
# inside of the repository.
render() { # components, ${COMPONENTS} when none are given
  local component
  # shellcheck disable=SC2086  # names with blanks between
  (($#)) || set -- ${COMPONENTS:-}
  mkdir -p dist
  overlay="$(mktemp -d "dist/overlay.$namespace.XXXXXX")"
  cat <<END
# Praetor, all in one: kubectl apply -f install.yaml. Needs Kubernetes 1.30 or newer, and two Secrets in $namespace, which
# only you can make; replicas that lack one end with a line that says so:
#   kubectl create namespace $namespace
#   for it in praetor-device-secret/token-secret praetor-peer-key/key; do
#     head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' |
#       kubectl -n $namespace create secret generic "\${it%/*}" --from-file="\${it#*/}=/dev/stdin"
#   done
# The tokens of all devices are derived from the first: keep it, also over a new installation. This makes the namespace
# Praetor's own: labelled as such, and held to the restricted Pod Security level.
END
  {
    echo "namespace: $namespace"
    echo "resources: [../../config/default]"
    echo "components:"
    for component in "$@"; do echo "  - ../../config/components/$component"; done
  } >"$overlay/kustomization.yaml"
  k kustomize "$overlay" | sed "s|image: praetor-manager:dev\$|image: $image|"
}

# Picks documents by their kind.
documents() { # only or without, kinds with | between; manifests come on standard input
  awk -v want="$1" -v kinds="^($2)\$" '
    function flush() { if (text != "" && (kind ~ kinds) == (want == "only")) printf "---\n%s", text; text = kind = "" }
    /^---$/ { flush(); next }
    /^kind: / { kind = $2 }
    { text = text $0 "\n" }
    END { flush() }'
}

# Passes on the documents of those kinds that the cluster has: kubectl deletes nothing when it does not know a kind.
served() { # file
  local version kinds kind said
  while read -r version kinds; do
    said="$(k get --raw "/$([[ "$version" == */* ]] && echo apis || echo api)/$version" 2>&1)" ||
      # Nobody serves this group: its project is not installed.
      [[ "$said" == *NotFound* || "$said" == *"could not find the requested resource"* ]] || fail "whether the cluster has $version cannot be seen: $said"
    for kind in $kinds; do
      if [[ "$said" =~ \"kind\":\ *\"$kind\" ]]; then echo "$kind"; fi
    done
  done < <(awk '/^apiVersion: / { version = $2 } /^kind: / && !seen[version, $2]++ { kinds[version] = kinds[version] " " $2 }
    END { for (version in kinds) print version kinds[version] }' "$1") >"$work/served"
  documents only "$(paste -sd '|' "$work/served")" <"$1"
}

# The cluster is there, and not too old.
reach() {
  local said minor
  said="$(k get --raw /version --request-timeout=10s 2>&1)" || fail "kubectl reaches no cluster: $(tail -n 1 <<<"$said")"
  minor="$(sed -n 's/.*"minor": *"\([0-9]*\).*/\1/p' <<<"$said")"
  [[ -z "$minor" ]] || ((minor >= 30)) || fail "this cluster runs Kubernetes 1.$minor; Praetor needs 1.30 or newer"
}

# A Secret with one random value, when there is none. It is in no argument, no file and no output.
secret() { # name, key
  local said
  if said="$(n get secret "$1" --output "go-template={{if index .data \"$2\"}}good{{end}}" 2>&1)"; then
    [[ "$said" == good ]] || fail "the Secret $1 in $namespace has no value for $2: add it, or delete the Secret to get a new one"
    note "the Secret $1 is there and stays as it is"
  elif [[ "$said" == *NotFound* ]]; then
    head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' | n create secret generic "$1" "--from-file=$2=/dev/stdin" >/dev/null || fail "the Secret $1 cannot be created in $namespace"
    note "made the Secret $1 with a random value for $2"
  else
    fail "whether there is a Secret $1 cannot be seen: $said"
  fi
}

pods=app.kubernetes.io/name=praetor,app.kubernetes.io/component=manager

# The text in Go's quotes.
unquote() {
  local text="${1:1:-1}"
  printf '%b' "${text//\\\"/\"}"
}

# Why a replica of the newest revision is not ready, a line each; nothing when nothing is wrong yet, or when the revision
# that was just applied has not been looked at. The message of a container that ended is the end of its log.
troubles() {
  local revision pod reason words ended
  n get deployment praetor-manager --output 'go-template={{.metadata.generation}} {{or .status.observedGeneration 0}}{{"\n"}}' |
    { read -r applied observed && [[ "$applied" == "$observed" ]]; } || return 0
  revision="$(n get replicasets --selector "$pods" --output \
    'go-template={{range .items}}{{index .metadata.annotations "deployment.kubernetes.io/revision"}} {{index .metadata.labels "pod-template-hash"}}{{"\n"}}{{end}}' | sort -n | tail -n 1)"
  n get pods --selector "$pods,pod-template-hash=${revision##* }" --output \
    'go-template={{range .items}}{{$pod := .metadata.name}}{{range .status.containerStatuses}}{{$words := ""}}{{$ended := ""}}{{with .state.waiting}}{{$words = .message}}{{end}}{{with .lastState.terminated}}{{$ended = .message}}{{end}}{{with .state.waiting}}{{printf "%s\t%s\t%q\t%q\n" $pod .reason (or $words "") (or $ended "")}}{{end}}{{end}}{{end}}' |
    while IFS=$'\t' read -r pod reason words ended; do
      # Quoted, so that each is one line whatever it holds.
      words="$(unquote "$words" | tr '\n' ' ')"
      ended="$(unquote "$ended" | awk 'NF { last = $0 } END { print last }')"
      case "$reason" in
        ErrImagePull | ImagePullBackOff | ErrImageNeverPull | InvalidImageName)
          echo "$pod: the image $image cannot be had ($reason): load it into the cluster or push it, or set IMAGE. ${words:0:300}" ;;
        CrashLoopBackOff) echo "$pod: ${ended:-it ends at once; see kubectl -n $namespace logs $pod --previous}" ;;
        CreateContainer* | RunContainerError | StartError) echo "$pod: $reason: ${words:0:300}" ;;
      esac
    done
}
wait_ready() {
  local begun=$SECONDS found
  # In the background, so that what goes wrong is told at once and not at the end.
  n rollout status deployment/praetor-manager "--timeout=${timeout}s" >"$work/rollout" 2>&1 &
  local waiting=$!
  while kill -0 "$waiting" 2>/dev/null; do
    found="$(troubles)"
    if [[ -n "$found" ]]; then
      kill "$waiting" 2>/dev/null || true
      wait "$waiting" 2>/dev/null || true
      fail "$(head -n 1 <<<"$found")"
    fi
    sleep 1
  done
  wait "$waiting" || fail "not ready after $((SECONDS - begun)) s: $(tail -n 1 "$work/rollout"); see kubectl -n $namespace describe pods"
  note "$(n get deployment praetor-manager --output 'go-template={{.status.readyReplicas}}') replicas are ready"
}

# missing; ours when it carries the mark of config/rbac/namespace.yaml; other when it is somebody else's.
whose_namespace() {
  local said
  said="$(k get namespace "$namespace" --ignore-not-found --output 'jsonpath={.metadata.name} {.metadata.labels.app\.kubernetes\.io/part-of}' 2>&1)" ||
    fail "whether there is a namespace $namespace cannot be seen: $said"
  case "$said" in
    "") echo missing ;;
    "$namespace praetor") echo ours ;;
    *) echo other ;;
  esac
}

# The rights of the whole cluster are those of one namespace's account: a second installation would take them away from
# the first, and its removal, too.
alone() {
  local said place
  said="$(k get clusterrolebinding praetor-manager --ignore-not-found --output 'jsonpath={.subjects[*].namespace}' 2>&1)" ||
    fail "whether there is a ClusterRoleBinding praetor-manager cannot be seen: $said"
  for place in $said; do
    [[ "$place" == "$namespace" ]] ||
      fail "Praetor is in the namespace $place (ClusterRoleBinding praetor-manager), not in $namespace: say NAMESPACE=$place, or take it away there first with make undeploy NAMESPACE=$place"
  done
}

crds() { k get customresourcedefinitions --output name | grep -E '/(networkswitches|deviceprocesses|deviceprocessdeployments)\.azure\.com$' || true; }

install() {
  k apply --kustomize config/crd
  k wait --for=condition=Established --timeout=60s --filename crd/azure.com_networkswitches.yaml --filename crd/azure.com_deviceprocesses.yaml --filename crd/azure.com_deviceprocessdeployments.yaml >/dev/null
}

deploy() {
  local whose
  alone
  whose="$(whose_namespace)"
  render >"$work/all"
  if [[ "$whose" == other ]]; then
    note "the namespace $namespace was there before: it keeps its labels and its Pod Security level, and uninstall will leave it"
    documents without Namespace <"$work/all" >"$work/manifests"
  else
    cp "$work/all" "$work/manifests"
    # The Secrets are there before the first replica looks for them.
    documents only Namespace <"$work/all" | k apply --filename -
  fi
  secret praetor-device-secret token-secret
  secret praetor-peer-key key
  k apply --filename "$work/manifests"
  wait_ready
}

# All but the namespace with the Secrets, and the CRDs with all objects. Of every component: nobody has to remember which
# ones there were.
undeploy() {
  alone
  # Not in a pipe: its folder would not be known here, and stay.
  # shellcheck disable=SC2046  # names of folders, without blanks
  render $(cd config/components && echo *) >"$work/all"
  documents without 'Namespace|CustomResourceDefinition' <"$work/all" >"$work/manifests"
  served "$work/manifests" >"$work/served-manifests"
  k delete --ignore-not-found --filename "$work/served-manifests"
  n delete leases --selector app.kubernetes.io/part-of=praetor --ignore-not-found >/dev/null
}

uninstall() {
  local kind answer="${CONFIRM:-}" present count secrets whose
  alone
  whose="$(whose_namespace)"
  present="$(crds)"
  echo "This deletes, in the cluster $(k config view --minify --output 'jsonpath={.clusters[0].cluster.server}'):"
  for kind in networkswitches deviceprocesses deviceprocessdeployments; do
    if grep -q "/$kind\." <<<"$present"; then
      count="$(k get "$kind.azure.com" --all-namespaces --output name | wc -l)"
      echo "  $count $kind, in all namespaces, and their CustomResourceDefinition"
    fi
  done
  secrets="$(n get secret praetor-device-secret praetor-peer-key --ignore-not-found --output name)"
  [[ -z "$secrets" ]] || echo "  $(wc -l <<<"$secrets") Secrets: every device will need a new token"
  case "$whose" in
    ours) echo "  the namespace $namespace with all that is in it: $(n get pods --output name | wc -l) pods, $(n get services --output name | wc -l) services" ;;
    other) echo "  what Praetor has in the namespace $namespace; the namespace stays, with all else in it: Praetor did not make it" ;;
  esac
  echo "Devices keep what they run."
  if [[ "$answer" != yes && -t 0 ]]; then
    read -r -p "Type yes to do that: " answer
  fi
  [[ "$answer" == yes ]] || fail "nothing was deleted; say CONFIRM=yes if that is meant"
  # First the manager: as long as it serves, an object that goes is an order to stop it.
  undeploy
  n wait --for=delete pods --selector "$pods" --timeout=90s >/dev/null 2>&1 ||
    note "the manager's pods are still there after 90 s"
  [[ -z "$present" ]] || xargs "$kubectl" delete <<<"$present"
  case "$whose" in
    ours) k delete namespace "$namespace" --ignore-not-found ;;
    # The last two are of the component tls: cert-manager leaves them behind.
    other) n delete secret praetor-device-secret praetor-peer-key praetor-tls praetor-ca --ignore-not-found ;;
  esac
}

[[ "$verb" == render ]] || reach
"$verb"
