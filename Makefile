# Praetor. `make` lists what can be done here; everything works from a clean clone on a Linux with Rust and Go.
.DEFAULT_GOAL := help
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
# The steps share one target folder and two cores are soon busy: one after the other, also under -j.
.NOTPARALLEL:
# Where the installers of Rust and Go put things, for shells that have not been told.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/go/bin
# Never a lock file that differs from the committed one.
CARGO := cargo
LOCKED := --locked
# What images are called, and where the manager runs. COMPONENTS: folders of config/components, with blanks between.
IMAGE ?= praetor-manager:dev
AGENT_IMAGE ?= praetor-agent:dev
NAMESPACE ?= praetor-system
COMPONENTS ?=
export IMAGE AGENT_IMAGE NAMESPACE COMPONENTS

AGENT_ONLY := --no-default-features --features agent
MANAGER_ONLY := --no-default-features --features manager
FLEET_ONLY := --no-default-features --features fleet

##@ Use it

demo: tools ## Play the whole story on a real control plane and check every step (KEEP=1 leaves it running)
	@hack/demo.sh

demo-switch: tools ## Only that part of it in which a switch runs processes (root; SWITCH=systemd or initd)
	@PRAETOR_SWITCH="$(SWITCH)" hack/demo.sh switch

build: tools ## Release binaries, each with its own features only, and their sizes
	@$(CARGO) build $(LOCKED) --release $(AGENT_ONLY) --bin praetor-agent
	@$(CARGO) build $(LOCKED) --release $(MANAGER_ONLY) --bin praetor-manager
	@cd "$${CARGO_TARGET_DIR:-target}/release" && ls -lh praetor-agent praetor-manager | awk '{ print $$5, $$NF }'

bench: tools controlplane ## Measure what the README's table says (takes a while; wants a quiet machine)
	@hack/bench.sh

# Optimized: a thousand devices, three replicas, the apiserver and who writes it all down share the machine.
faults: tools ## Kill, stop, cut and stall real replicas at true times and check the whole history (takes an hour)
	@assets="$$(hack/controlplane.sh)"; set -x; \
	PRAETOR_FAULTS=full KUBEBUILDER_ASSETS="$$assets" \
	  $(CARGO) test $(LOCKED) --release --test faults -- --nocapture --test-threads=1

sim: tools ## Simulate replicas, network, clocks and apiserver from seeds (SEEDS=20000 for more, SEED=17 for one again)
	@set -x; $(if $(SEEDS),PRAETOR_SIM_SEEDS=$(SEEDS)) $(if $(SEED),PRAETOR_SIM_SEED=$(SEED)) $(if $(MIX),PRAETOR_SIM_MIX=$(MIX)) \
	  $(CARGO) test $(LOCKED) --test sim -- --nocapture

controlplane: ## Provide kube-apiserver, etcd and kubectl; prints their folder (KUBEBUILDER_ASSETS, cache, or a Go build)
	@hack/controlplane.sh

##@ In a cluster (IMAGE=, AGENT_IMAGE=, NAMESPACE=, COMPONENTS="flowschema podmonitor")

images: ## Both container images, also without a Docker daemon; written to dist/ as tarballs
	@hack/images.sh

docker-build: images ## The same

install: ## The CRDs alone, into the cluster that kubectl points at
	@hack/deploy.sh install

deploy: ## CRDs, rights, three replicas and (once, if missing) their two Secrets; waits until they are ready
	@hack/deploy.sh deploy

undeploy: ## Removes the manager and its rights; CRDs, objects and Secrets stay
	@hack/deploy.sh undeploy

uninstall: ## Removes everything; says first how much that is, and wants a yes (CONFIRM=yes)
	@hack/deploy.sh uninstall

dist: ## dist/install.yaml: all manifests in one file
	@mkdir -p dist
	@hack/deploy.sh render >dist/install.yaml.new
	@mv dist/install.yaml.new dist/install.yaml
	@echo "dist: dist/install.yaml with $(IMAGE) in $(NAMESPACE); it needs two Secrets, see its head"

e2e: ## The whole story in a cluster of its own: kind, or a node from the real Kubernetes binaries (E2E_PROVIDER=)
	@hack/e2e.sh

##@ Change it

test: tools fmt-check purity clippy docs agent-only generated monitoring unit integration backends ## Everything that must hold before a change is done
	@echo "test: everything holds"

lint: tools fmt-check purity clippy docs generated monitoring ## The checks of `make test` that start nothing

fmt: tools ## Format the code
	@$(CARGO) fmt

vet: clippy ## The lints, by the name that Go gives them

generate: manifests ## The same as manifests: nothing else is generated

manifests: tools ## Write the CRDs in crd/ anew from the types in src/api
	@$(CARGO) run $(LOCKED) --quiet --bin praetor-manager -- crds --output-dir crd

clean: ## Remove what was built (the control plane's cache outside of the clone stays)
	@$(CARGO) clean
	@rm -rf dist

##@ Parts of `make test`

tools: ## Rust, its components and a C compiler: installs what it can and says what is missing
	@hack/tools.sh

fmt-check: ## Formatting, unchanged
	@$(CARGO) fmt --check

purity: ## Pure files are pure, arrows between rooms hold, no file is too long; and the check can fail
	@hack/check-purity.sh --self-test
	@hack/check-purity.sh

clippy: ## Lints are errors: all targets, and each binary with its own features alone
	$(CARGO) clippy $(LOCKED) --all-targets --all-features -- -D warnings
	$(CARGO) clippy $(LOCKED) --all-targets $(AGENT_ONLY) -- -D warnings
	$(CARGO) clippy $(LOCKED) --all-targets $(MANAGER_ONLY) -- -D warnings
	$(CARGO) clippy $(LOCKED) --all-targets $(FLEET_ONLY) -- -D warnings

# Help texts of flags are documentation, too, and say <NAME>.
docs: ## The documentation builds and its links lead somewhere
	RUSTDOCFLAGS="-D warnings -A rustdoc::invalid_html_tags" $(CARGO) doc $(LOCKED) --no-deps --lib

generated: binaries ## The CRDs in crd/ are what the types say, and the README names every flag and metric
	@hack/check-generated.sh
	@hack/check-readme.sh

monitoring: ## Rules, alerts with their tests and runbooks, scrape configurations; and that check can fail
	@hack/check-monitoring.sh --self-test
	@hack/check-monitoring.sh

# With the tests, so that every step uses one build of the dependencies: tests ask for more features of some.
binaries: ## The binaries and all tests, unoptimized
	$(CARGO) build $(LOCKED) --bins --tests

agent-only: ## The agent builds alone, and nothing in it knows Kubernetes
	$(CARGO) build $(LOCKED) $(AGENT_ONLY) --bins
	@hack/check-agent.sh

unit: ## Unit and property tests
	$(CARGO) test $(LOCKED) --lib --bins
	$(CARGO) test $(LOCKED) --doc

integration: ## End-to-end tests on a real control plane; all of them run, also after a failure
	@assets="$$(hack/controlplane.sh)"; set -x; \
	KUBEBUILDER_ASSETS="$$assets" $(CARGO) test $(LOCKED) --no-fail-fast --test '*'

backends: ## Units of a real systemd, in a switch of its own; said plainly where none can run (Linux, root)
	@hack/backends.sh $(RULE) || { code=$$?; [ $$code -eq 3 ] && echo "backends: systemd was NOT tested, for the reason above"; }

##@ Now and then

deny: ## Licences, advisories and duplicates of the dependencies (asks the network)
	@command -v cargo-deny >/dev/null || { echo "deny: cargo-deny is missing: cargo install --locked cargo-deny" >&2; exit 1; }
	@$(CARGO) deny --all-features check

help: ## This list
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: $(shell awk -F: '/^[a-z0-9-]+:/ { print $$1 }' $(firstword $(MAKEFILE_LIST)))
