#!/usr/bin/env bash
# The files in config/monitoring hold together: promtool accepts rules and scrape configurations; its tests pass; every
# alert has a test in which it fires and one in which it does not, a summary, a description, a severity and a runbook
# that exists; the PrometheusRule is what rules.yaml says; every metric that is asked for is one of the code's.
#   check-monitoring.sh               checks
#   check-monitoring.sh --write       writes prometheusrule.yaml anew from rules.yaml
#   check-monitoring.sh --self-test   breaks each of these once in a copy and expects to be told
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

prometheus_rule() { # rules.yaml
  cat <<'HEAD'
# Made from rules.yaml by hack/check-monitoring.sh --write: change that file.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: praetor
  namespace: praetor-system
  labels:
    app.kubernetes.io/name: praetor
    app.kubernetes.io/component: monitoring
spec:
HEAD
  sed -n '/^groups:/,$ { /^ *#/d; s/^\(.\)/  \1/p }' "$1"
}

# What must be said of each alert, from rules.yaml, and which cases the tests have.
alerts() { awk '$1 == "-" && $2 == "alert:" { print $3 }' "$1/rules.yaml" | sort; }
field() { # folder, alert, field
  awk -v alert="$2" -v field="$3:" '
    $1 == "-" { on = $2 == "alert:" && $3 == alert }
    on && $1 == field { sub(/^[^:]*: */, ""); print; exit }' "$1/rules.yaml"
}
cases() { # folder, fires|quiet: alerts with such a case, one a line
  awk -v want="$2" '
    $1 == "alertname:" || ($1 == "-" && $2 == "alertname:") { alert = $NF }
    $1 == "exp_alerts:" { if (want == "quiet" && $2 == "[]") print alert; open = $2 == "" }
    $1 == "-" && $2 == "exp_labels:" && open { if (want == "fires") print alert; open = 0 }' "$1"/*_test.yaml | sort -u
}
anchors() { sed -n 's/^## *//p' "$1/RUNBOOKS.md" | tr 'A-Z ' 'a-z-' | sort; }

# Whether files exist that only the place of use has (a kubeconfig) is not asked. Debian's promtool is built without
# Kubernetes: it is shown the rest of the job.
check_config() { # file
  local said
  said="$(promtool check config --syntax-only "$1" 2>&1)" && return
  if [[ "$said" == *"field kubernetes_sd_configs not found"* ]]; then
    said="$(promtool check config --syntax-only <(awk '
      /^    kubernetes_sd_configs:$/ { skip = 1; next }
      skip && /^    [^ ]/ { skip = 0 }
      !skip' "$1") 2>&1)" && return
  fi
  echo "$said"
  return 1
}

check() { # folder, "text" to leave promtool out
  local dir="$1" bad=0 alert anchor text
  complain() { echo "monitoring: $*" >&2; bad=1; }

  if [[ "${2:-}" != text ]]; then
    text="$(promtool check rules "$dir/rules.yaml" 2>&1)" || complain "promtool refuses rules.yaml: $text"
    for file in "$dir"/prometheus*.yaml; do
      [[ "$file" == */prometheusrule.yaml ]] && continue
      text="$(check_config "$file")" || complain "promtool refuses ${file##*/}: $text"
    done
    for file in "$dir"/*_test.yaml; do
      text="$(promtool test rules "$file" 2>&1)" || complain "${file##*/}: $text"
    done
  fi

  [[ "$(alerts "$dir" | wc -l)" -ge 8 ]] || complain "fewer than 8 alerts were found in rules.yaml"
  for alert in $(alerts "$dir"); do
    for text in fires quiet; do
      grep -qx "$alert" < <(cases "$dir" "$text") ||
        complain "$alert has no test in which it $([[ $text == fires ]] && echo fires || echo "does not fire (exp_alerts: [])")"
    done
    for text in summary description; do
      [[ -n "$(field "$dir" "$alert" "$text")" ]] || complain "$alert has no $text"
    done
    [[ "$(field "$dir" "$alert" severity)" =~ ^(critical|warning)$ ]] || complain "$alert: severity is critical or warning"
    anchor="$(field "$dir" "$alert" runbook_url)"
    [[ "$anchor" == "config/monitoring/RUNBOOKS.md#${alert,,}" ]] || complain "$alert: runbook_url is config/monitoring/RUNBOOKS.md#${alert,,}, not '$anchor'"
    grep -qx "${alert,,}" < <(anchors "$dir") || complain "RUNBOOKS.md has no section '## $alert'"
  done
  for anchor in $(anchors "$dir"); do
    grep -qix "$anchor" < <(alerts "$dir") || complain "RUNBOOKS.md has a section '$anchor', which is no alert"
  done

  diff "$dir/prometheusrule.yaml" <(prometheus_rule "$dir/rules.yaml") >/dev/null ||
    complain "prometheusrule.yaml is not what rules.yaml says: hack/check-monitoring.sh --write"

  # Series of histograms carry a suffix; what they hold is looked at by the test `monitoring`, on a live manager.
  text="$(comm -13 <(grep -rhoE '"(praetor|process)_[a-z_]+"' src | tr -d '"' | sort -u) \
    <(grep -hv '^ *#' "$dir/rules.yaml" "$dir/dashboard.json" | grep -ohE '\b(praetor|process)_[a-z_]+' | sed -E 's/_seconds_(bucket|sum|count)$/_seconds/' | sort -u) | tr '\n' ' ')"
  [[ -z "$text" ]] || complain "no code has the metric: $text"
  return "$bad"
}

self_test() {
  copy="$(mktemp -d)"
  local said missed=0
  trap 'rm -rf "$copy"' EXIT
  check config/monitoring || { echo "monitoring: the self-test needs files that are right" >&2; return 1; }
  expect() { # what is said, file, sed expression that breaks it, "rule" to make the PrometheusRule anew, "text" as above
    rm -rf "$copy/m"; cp -r config/monitoring "$copy/m"
    sed -i -E "$3" "$copy/m/$2"
    [[ "$4" != rule ]] || prometheus_rule "$copy/m/rules.yaml" >"$copy/m/prometheusrule.yaml"
    if cmp -s "$copy/m/$2" "config/monitoring/$2"; then echo "monitoring: self-test: '$3' changes nothing in $2" >&2; missed=1; return; fi
    if said="$(check "$copy/m" "${5:-}" 2>&1)"; then echo "monitoring: self-test: nothing is said of '$3' in $2" >&2; missed=1; return; fi
    grep -qF -- "$1" <<<"$said" || { echo "monitoring: self-test: '$3' in $2 should say '$1', and says: $said" >&2; missed=1; }
  }
  expect "promtool refuses rules.yaml" rules.yaml 's/^( *)expr: absent\(.*/\1expr: absent((/' rule
  expect "promtool refuses prometheus.yaml" prometheus.yaml 's/scrape_configs:/scrapes:/' -
  expect "rules_test.yaml:" rules.yaml 's/> 180/> 18000/' rule
  expect "rollout_test.yaml:" rules.yaml 's/for: 5m/for: 30s/' rule
  expect "PraetorDown has no test in which it fires" rules_test.yaml '/alertname: PraetorDown/,/exp_alerts/ s/exp_alerts:.*/exp_alerts: []/; s/PraetorDown, severity/x/' - text
  expect "PraetorCertificateEnds has no test in which it does not fire" rules_test.yaml '/alertname: PraetorCertificateEnds/,/exp_alerts/ s/PraetorCertificateEnds/PraetorDown/' - text
  expect "PraetorNoLeader has no summary" rules.yaml '/summary: No replica leads/d' rule text
  expect "PraetorNoLeader: severity" rules.yaml '/alert: PraetorNoLeader/,/severity/ s/severity: .*/severity: bad/' rule text
  expect "PraetorNoLeader: runbook_url" rules.yaml 's/#praetornoleader/#nowhere/' rule text
  expect "no section '## PraetorNoLeader'" RUNBOOKS.md 's/^## PraetorNoLeader/## Other/' - text
  expect "which is no alert" RUNBOOKS.md '$ a ## Praetor Other' - text
  expect "prometheusrule.yaml is not what" prometheusrule.yaml 's/for: 2m/for: 3m/' - text
  expect "no code has the metric: praetor_devises" dashboard.json 's/praetor_devices/praetor_devises/' - text
  [[ "$missed" == 0 ]] || return 1
  echo "monitoring: every check can fail"
}

case "${1:-}" in
  --write) prometheus_rule config/monitoring/rules.yaml >config/monitoring/prometheusrule.yaml; exit 0 ;;
  "" | --self-test) ;;
  *) echo "monitoring: unknown argument '$1': nothing, --write or --self-test" >&2; exit 2 ;;
esac
PATH="$(hack/prometheus.sh):$PATH"
if [[ "${1:-}" == --self-test ]]; then self_test; exit; fi
check config/monitoring || exit 1
echo "monitoring: $(alerts config/monitoring | wc -l) alerts, each with a runbook and both kinds of tests; rules, scrape configurations and the PrometheusRule are right"
