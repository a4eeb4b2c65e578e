# One-liners over `testbed`; `make help` says what there is. Variables: make run-single card=h100_94gb size=tiny row="xxl xxl-sgd"
suite   ?= single_gpu_blip2
results ?= results
run     ?= $(results)/latest
CACHE   ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/llm-testbed

PINS    := containers/current.txt
PYTHON  := $(or $(shell command -v python3.11),$(shell command -v python3),python3)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1)
ENV     := $(CACHE)/env-$(shell cat $(PINS) | sha256sum | cut -c1-12)-py$(VERSION)
BIN     := $(ENV)/bin
TESTBED := PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m experiments
NAMES   := site profile account card size length weights data data_sha256 input gpus_per_node versions run_id host_memory_gib
ASKED    = $(if $(filter command line,$(origin suite)),$(suite))
OPTIONS  = $(foreach name,$(NAMES),$(if $($(name)),--$(subst _,-,$(name)) $($(name)))) \
  $(foreach id,$(row),--row $(id)) --results $(results) $(args)

FLAGS    = $(if $(site),--site $(site)) $(if $(for),--for $(for)) $(if $(node),--node-type $(node)) \
  $(if $(hours),--hours $(hours)) $(if $(start),--start "$(start)") $(if $(count),--count $(count))

.PHONY: help run-single run-multi predict reproduce rehearse evaluate report compare list logs top notebook python env testbed-env clean-results clean
.PHONY: test test-chameleon test-slurm test-node test-chain test-as-taught lint
.PHONY: doctor slots lease configure status extend release orphans
.DEFAULT_GOAL := help

help: ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

run-single: env ## run the single-GPU experiments here, evaluate and report them (suite= card= size= length= row= ...)
	$(TESTBED) run $(or $(ASKED),single_gpu_blip2 single_gpu_litgpt) $(OPTIONS)

run-multi: env ## run the experiments of several GPUs likewise (gpus_per_node=N runs their rows on fewer)
	$(TESTBED) run $(or $(ASKED),multi_gpu_litgpt slurm_hf_trainer) $(OPTIONS)

predict: env ## predict GPU memory without a GPU (suite= card= row=; none: every row on every card)
	$(TESTBED) predict $(if $(row),$(suite)/$(row),$(ASKED)) \
	  $(if $(card),--card $(card)) $(args)

evaluate: env ## evaluate stored results again (run=FOLDER)
	$(TESTBED) evaluate $(run)

report: env ## write the report of a run anew (run=FOLDER)
	$(TESTBED) report $(run)

compare: env ## show what differs between two runs (a=FOLDER b=FOLDER)
	$(TESTBED) compare $(a) $(b)

list: env ## list the suites, or the rows of one (suite=NAME)
	$(TESTBED) list $(ASKED)

logs: env ## a row's log, live where it runs elsewhere (row= run=FOLDER args=-f)
	$(TESTBED) logs $(row) $(run) $(args)

top: env ## GPUs and rows of the held lease, or of a cluster (site= profile= args=--once)
	$(TESTBED) top $(if $(site),--site $(site)) $(if $(profile),--profile $(profile)) $(args)

notebook: env ## Jupyter on the leased machine, through a tunnel (suite=NAME opens its notebook)
	$(TESTBED) notebook $(if $(ASKED),--narrative $(ASKED)) $(args)

doctor: env ## is everything there that a lease needs? (site=)
	$(TESTBED) doctor $(if $(site),--site $(site)) $(args)

slots: env ## the earliest blocks in which nodes are free, and the calendar (node=gpu_a100_pcie for=both|single|multi hours= start= count= days=3)
	$(TESTBED) slots --calendar $(or $(days),3) $(FLAGS) $(args)

lease: env ## reserve the earliest block, boot its nodes, say how to reach them (as slots; args="--yes --watch")
	$(TESTBED) lease $(FLAGS) $(args)

configure: env ## driver, Docker, Slurm and the image on the nodes of a lease (name= versions= args="--check")
	$(TESTBED) configure $(name) $(if $(versions),--versions $(versions)) $(args)

status: env ## what is held, until when, and what it has cost
	$(TESTBED) status $(args)

extend: env ## make a lease longer (name= by=1h)
	$(TESTBED) extend $(name) $(if $(by),--by $(by)) $(args)

release: env ## give back servers, addresses and lease (name=)
	$(TESTBED) release $(name) $(args)

orphans: env ## what carries our mark at the site and is in no ledger (args=--clean)
	$(TESTBED) orphans $(args)

reproduce: env ## all of it: reserve, set up, run, evaluate, report, release (node= for= hours= versions= args="--yes --max-hours 3")
	$(TESTBED) reproduce $(ASKED) $(FLAGS) $(foreach id,$(row),--row $(id)) \
	  $(if $(versions),--versions $(versions)) --results $(results) $(args)

rehearse: ## the same in miniature, against a testbed in a box on this machine (root, mmdebstrap, systemd-container)
	@$(MAKE) --no-print-directory -j 2 env testbed-env
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m tests.testbed.chain.rehearse $(results)

test: lint testbed-env ## every check: style, types, who imports whom, tests, also against OpenStack (see test-slurm, test-node, test-chain)
	PYTHONPATH=$(CURDIR) $(BIN)/python -m pytest -n 2 --dist loadgroup --ignore=tests/testbed
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m pytest -n 2 tests/testbed/chameleon

test-chameleon: env testbed-env ## the tests of leasing alone, against real OpenStack services on this machine
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m pytest -n 2 tests/testbed/chameleon tests/provision

test-slurm: env ## the tests of rows on clusters, on a Slurm that they start on this machine (packages slurm-wlm, munge, openssh-server)
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m pytest -n 2 --dist loadfile tests/testbed/slurm

test-node: env ## the tests of setting a machine up, on real nodes in a box (root, mmdebstrap, systemd-container)
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m pytest tests/testbed/node

test-chain: env testbed-env ## the tests of the whole chain, and of what goes wrong in it (needs what rehearse does)
	PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(BIN)/python -m pytest tests/testbed/chain

test-as-taught: ## the miniatures of all rows with the material's own versions, in an environment of theirs (8 GB; no part of test)
	$(MAKE) --keep-going run-single run-multi PINS="containers/as-taught.txt containers/jupyter.txt" size=tiny results=$(results)/as-taught-versions

lint: env ## style, types, who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=$(CURDIR) $(BIN)/lint-imports

env: $(ENV)/.made ## the Python environment, cached by its pins

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is $(VERSION); install python3.11 and its venv module" >&2; exit 2; }
	@mkdir -p $(CACHE)

$(ENV)/.made: | python
	@echo "making the environment in $(ENV)"
	@flock $(ENV).lock sh -c 'test -e $@ || { $(PYTHON) -m venv --clear $(ENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PINS:%=-r %) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check $(shell grep -h '^torch==' $(PINS)) && touch $@; }'

testbed-env: python # the OpenStack services of the tests and their databases, cached
	@PYTHONPATH=$(CURDIR) TESTBED_CACHE=$(CACHE) $(PYTHON) -m tests.testbed.openstack

clean-results: ## remove every run
	rm -rf $(results)

clean: ## remove what checks and tests left
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
