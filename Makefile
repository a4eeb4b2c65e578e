# Most targets run one `testbed` command; `make help` lists all targets.
# Variables set options: make run-single card=h100_94gb size=tiny row="xxl xxl-sgd"
results ?= results
run     ?= $(results)/latest
CACHE   ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/llm-testbed

STATE_FOLDER := $(or $(TESTBED_LEDGER),$(or $(XDG_STATE_HOME),$(HOME)/.local/state)/llm-testbed)

PINS    := containers/current.txt
# The Python of a distribution comes first: it is built with optimizations, which pyenv omits (tests/README.md).
OF_SYSTEM := import ensurepip, os, sys, sysconfig, venv; os.path.exists(sysconfig.get_path("include") + "/Python.h") and print(sys.executable)
PYTHON  := $(or $(shell /usr/bin/python3.11 -c '$(OF_SYSTEM)' 2> /dev/null),$(shell command -v python3.11),$(shell command -v python3),python3)
PYTHON_VERSION := $(shell $(PYTHON) -c 'import platform; print(platform.python_version())' 2>&1)
LOCKS    = $(PINS:containers/%=containers/locks/%)
ENV     := $(CACHE)/env-$(shell cat $(LOCKS) | sha256sum | cut -c1-12)-py$(PYTHON_VERSION)
BIN     := $(ENV)/bin
EVIDENCE_COMMIT := ecb175d
TESTBED := @PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m experiments
SITE_OPTIONS := site profile account
ROW_OPTIONS  := card size length weights input versions gpus_per_node data data_sha256 run_id host_memory_gib
as_options      = $(foreach name,$(1),$(if $($(name)),--$(subst _,-,$(name)) $($(name))))
ROW_ARGUMENTS   = $(foreach id,$(row),--row $(id)) --results $(results)
RUN_ARGUMENTS   = $(call as_options,$(SITE_OPTIONS) $(ROW_OPTIONS)) $(ROW_ARGUMENTS) $(args)
LEASE_ARGUMENTS = $(call as_options,site for hours count) $(if $(node),--node-type $(node)) $(if $(start),--start "$(start)")
NAME_ARGUMENT   = $(if $(name),--name $(name))

ALLOWED_VARIABLES := $(SITE_OPTIONS) $(ROW_OPTIONS) for hours count node start row suite args run results a b name by days version faults PINS CACHE PYTHON
GIVEN_VARIABLES   := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
UNKNOWN_VARIABLES := $(filter-out $(ALLOWED_VARIABLES),$(GIVEN_VARIABLES))
$(if $(UNKNOWN_VARIABLES),$(error unknown variable: $(UNKNOWN_VARIABLES); allowed: $(sort $(ALLOWED_VARIABLES))))
SHELL_CHARACTERS := ; & | < > ` " ' \ $$
UNSAFE_VARIABLES := $(strip $(foreach name,$(filter-out args CACHE PYTHON,$(GIVEN_VARIABLES)),$(if $(strip $(foreach character,$(SHELL_CHARACTERS),$(findstring $(character),$($(name))))),$(name))))
$(if $(UNSAFE_VARIABLES),$(error $(firstword $(UNSAFE_VARIABLES)) has a character that the shell would interpret, one of $(SHELL_CHARACTERS); to use such a value, run `testbed` itself, with the value in quotes))

$(if $(word 2,$(CACHE)),$(error the cache folder has a space: $(CACHE); make cannot use it: set another folder with CACHE=FOLDER))
$(if $(word 2,$(CURDIR)),$(error the folder of this project has a space: $(CURDIR); make cannot use it: rename the folder))

unexport PYTHONDONTWRITEBYTECODE # set in many container images; with it, each process compiles its packages again

.PHONY: help run-single run-multi predict semester reproduce rehearse evaluate report compare cards models list logs top notebook notebooks python env testbed-env clean-results clean uninstall
.PHONY: test test-fast test-chameleon test-slurm test-node test-chain test-as-taught mutants lint
.PHONY: lock wheel test-wheel evidence-archive release-check release-version
.PHONY: doctor slots lease configure status extend release orphans
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z -]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'
	@echo "environment: $(ENV), linked as .venv"

run-single: env ## run the labs for one GPU and write their report (suite= card= size= length= row= ...)
	$(TESTBED) run $(or $(suite),--group single) $(RUN_ARGUMENTS)

run-multi: env ## run the labs for several GPUs (options as for run-single; gpus_per_node=N runs rows on at most N GPUs)
	$(TESTBED) run $(or $(suite),--group multi) $(RUN_ARGUMENTS)

predict: env ## predict GPU memory without a GPU (suite= row= card=; default: all rows on all cards)
	$(if $(row),$(if $(suite),,$(error row=$(row) needs suite=NAME, the suite that contains the row)))
	$(TESTBED) predict $(suite)$(if $(row),/$(row)) $(call as_options,card) $(args)

evaluate: env ## evaluate the stored results of a run again (run=FOLDER)
	$(TESTBED) evaluate $(run)

report: env ## write the report of a run again (run=FOLDER)
	$(TESTBED) report $(run)

compare: env ## compare two runs (a=FOLDER b=FOLDER)
	$(TESTBED) compare $(a) $(b)

semester: env ## check all suites with three sets of package versions: as taught, current, newest (suite= results= args=--dry-run)
	$(TESTBED) semester $(suite) --results $(results)/semester $(args)

cards models: env ## list the GPU models, or the language models, that the project knows
	$(TESTBED) $@

list: env ## list the suites, or the rows of one suite (suite=NAME)
	$(TESTBED) list $(suite)

logs: env ## print the log of a row, even if it runs on another machine (row= run=FOLDER args=-f)
	$(if $(row),,$(error row= is required: the id of a row, which `make list suite=NAME` shows))
	$(TESTBED) logs $(row) $(run) $(args)

top: env ## show the GPUs and rows of leased nodes or of a cluster (site= profile= args=--once)
	$(TESTBED) top $(call as_options,site profile) $(args)

notebook: env ## run Jupyter on the leased node and open a tunnel to it (suite=NAME opens the notebook of the suite)
	$(TESTBED) notebook $(suite) $(args)

notebooks: env ## write the outputs in the labs' notebooks again; each notebook names the stored run that has its outputs
	$(TESTBED:experiments=experiments.notebooks.refresh)

doctor: env ## check this machine, a site or a cluster (site= profile= account=)
	$(TESTBED) doctor $(call as_options,site profile account) $(args)

slots: env ## find the earliest free time slots and show a calendar (node=gpu_a100_pcie for=both|single|multi hours= start= count= days=3)
	$(TESTBED) slots --calendar $(or $(days),3) $(LEASE_ARGUMENTS) $(args)

lease: env ## lease the earliest time slot, boot the nodes, print how to log in (name=, options as for slots; args="--yes --watch")
	$(TESTBED) lease $(LEASE_ARGUMENTS) $(NAME_ARGUMENT) $(args)

configure: env ## install driver, Docker, Slurm and the image on leased nodes (name= versions= args="--check")
	$(TESTBED) configure $(name) $(call as_options,versions) $(args)

status: env ## show active leases with their end and cost
	$(TESTBED) status $(args)

extend: env ## extend a lease (name= by=1h)
	$(TESTBED) extend $(name) $(call as_options,by) $(args)

release: env ## release a lease with its servers and addresses (name=)
	$(TESTBED) release $(name) $(args)

orphans: env ## list resources that the program created for you and that belong to no active lease (args=--clean deletes them)
	$(TESTBED) orphans $(args)

reproduce: env ## lease, configure, run, evaluate, report and release (node= name= for= hours= versions= args="--yes --max-hours 3")
	$(TESTBED) reproduce $(suite) $(LEASE_ARGUMENTS) $(NAME_ARGUMENT) $(call as_options,$(ROW_OPTIONS)) $(ROW_ARGUMENTS) $(args)

rehearse: ## run all steps of reproduce with tiny models on this machine (needs root, mmdebstrap, systemd-container; faults=1 also makes services and nodes fail)
	@$(MAKE) --no-print-directory -j 2 env testbed-env
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m tests.testbed.chain.rehearse$(if $(faults),_faults) $(results)

test: lint testbed-env ## run all checks that each change needs: style, types, import contracts, tests, leasing with OpenStack
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m pytest -n 3 --dist loadgroup -m "not slurm and not node and not chain"

test-fast: env ## run the fast tests: do this after every change (2 to 4 minutes)
	PYTHONPATH=$(CURDIR) $(BIN)/python -m pytest -n 3 --dist loadgroup --ignore=tests/testbed -m "not slow"

test-chameleon: env testbed-env ## test leasing with real OpenStack services on this machine
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m pytest -n 3 tests/testbed/chameleon tests/provision

test-slurm: env ## test rows on clusters with a real Slurm on this machine (needs slurm-wlm, munge, openssh-server)
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m pytest -n 2 --dist loadfile tests/testbed/slurm

test-node: env ## test the node configuration with Ubuntu nodes on this machine (needs root, mmdebstrap, systemd-container)
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m pytest tests/testbed/node

test-chain: env testbed-env ## test all steps of reproduce together, also when services and nodes fail (needs the same packages as rehearse)
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m pytest tests/testbed/chain

test-as-taught: ## run all rows with tiny models and the labs' own library versions (builds an environment of 8 GB)
	$(MAKE) --keep-going run-single run-multi PINS="containers/as-taught.txt containers/jupyter.txt" size=tiny results=$(results)/as-taught-versions

mutants: env ## plant faults in the code and count how many the tests find (takes hours; args="--sample 150 --at-most 20 --again")
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m tests.benchmarks.mutants --out tests/benchmarks/mutants/results.json $(args)

lint: env ## check style, spelling, types, import contracts, files for GitHub (workflows, Dependabot, CITATION.cff)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/mypy -n 2 --cache-dir $(CACHE)/mypy
	PYTHONPATH=$(CURDIR) $(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

CHECKS_ENV    := $(CACHE)/checks-$(shell cat containers/locks/checks.txt | sha256sum | cut -c1-12)-py$(PYTHON_VERSION)
AUDITED_LISTS := current jupyter uv docs checks mutants
PIP_AUDIT     := $(CHECKS_ENV)/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off
.PHONY: audit lint-ansible

audit: $(CHECKS_ENV)/.made ## look up the locked packages in PyPI's database of known vulnerabilities (needs network)
	@for lock in $(AUDITED_LISTS); do \
	  echo "containers/locks/$$lock.txt:"; \
	  sed 's/^# \(torch==\)/\1/; s/ *\\$$//; /--hash=/d' containers/locks/$$lock.txt > "$(CHECKS_ENV)/audited.txt"; \
	  $(PIP_AUDIT) --requirement "$(CHECKS_ENV)/audited.txt" || failed=1; \
	done; exit $${failed:-0}

lint-ansible: $(CHECKS_ENV)/.made ## check ansible/ with ansible-lint's profile for production (a minute)
	cd ansible && PATH="$(CHECKS_ENV)/bin:$$PATH" ansible-lint --offline --profile production --nocolor -q .

$(CHECKS_ENV)/.made: containers/locks/checks.txt | python
	@flock $(CHECKS_ENV).lock $(PYTHON) containers/environment.py $(CHECKS_ENV) $<

wheel: env ## build the package in dist/
	$(BIN)/python -m pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir dist .

test-wheel: env ## test the installed package outside of the checkout (two minutes; `make test` includes this)
	PYTHONPATH=$(CURDIR) $(BIN)/python -m pytest tests/package

evidence-archive: # pack the complete folders of the stored runs, which only the commit EVIDENCE_COMMIT contains
	mkdir -p dist
	git archive --format=tar.gz --output=dist/evidence.tar.gz $(EVIDENCE_COMMIT) experiments/evidence

release-check: lint test-wheel wheel evidence-archive ## build and test the files of a release in dist/
	cd dist && sha256sum *.whl *.tar.gz > SHA256SUMS

release-version: ## commit and tag a version (version=0.2.0; CHANGELOG.md needs a section for it); push the tag to release it
	@grep -q '^## $(version)\b' CHANGELOG.md || { echo "CHANGELOG.md has no section '## $(version)'" >&2; exit 2; }
	sed -i 's/^version = .*/version = "$(version)"/' pyproject.toml containers/pyproject.toml
	git commit --quiet --message "Release $(version)" CHANGELOG.md pyproject.toml containers/pyproject.toml
	git tag --annotate --message "Release $(version)" v$(version)

env: $(ENV)/.made ## create the Python environment with the command testbed: one in the cache for each list of versions, linked as .venv
	@test "$(PINS)" != containers/current.txt || { test -e .venv && test ! -L .venv; } || ln -sfn $(ENV) .venv
	@ln -sfn "$(CURDIR)/containers/testbed" "$(BIN)/testbed"

python: # check the version of Python, and create the cache folder
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is $(PYTHON_VERSION); install python3.11 and its venv module" >&2; exit 2; }
	@mkdir -p $(CACHE)

$(ENV)/.made: | python
	@flock $(ENV).lock $(PYTHON) containers/environment.py $(ENV) $(LOCKS)

lock: env ## write the hashes of all packages to containers/locks (run it after you change containers/*.txt)
	$(BIN)/python containers/lock.py

testbed-env: python # install in the cache the OpenStack services, and their databases, that the tests use
	@PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(PYTHON) -m tests.testbed.openstack

clean-results: ## remove the results of all runs
	rm -rf $(results)

uninstall: ## list the files of this project outside of the checkout; args=--yes removes the caches, never the journal
	@du -sh "$(CACHE)" "$(STATE_FOLDER)" "$(results)" .venv 2> /dev/null || true
	@echo "$(CACHE): environments, downloads, predictions; $(STATE_FOLDER): the journal of leases; $(results): runs"
	@$(if $(filter --yes,$(args)),rm -rf "$(CACHE)" $(if $(shell test -L .venv && echo link),.venv),echo "make uninstall args=--yes removes $(CACHE) and .venv; remove the journal and the runs yourself")

clean: ## remove files that checks and tests create
	rm -rf dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

DOCS_ENV := $(CACHE)/docs-$(shell cat containers/locks/docs.txt | sha256sum | cut -c1-12)-py$(PYTHON_VERSION)
.PHONY: docs

docs: env $(DOCS_ENV)/.made ## build the documentation website in site/ and check its links
	PYTHONPATH=$(CURDIR) $(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(DOCS_ENV)/bin/mkdocs build --strict

$(DOCS_ENV)/.made: containers/locks/docs.txt | python
	@flock $(DOCS_ENV).lock $(PYTHON) containers/environment.py $(DOCS_ENV) $<
