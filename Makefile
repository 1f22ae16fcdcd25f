# make reproduce: the tables and figures of the embedded default · make test: the tests · make test-all: those that
# run the workflow from end to end, too · make lint: style, imports, types · make paper: the published tables and figures
# from their records · make docs: the documentation and the published results as a site · make demo: a page that runs an
# exported file in the browser · make gpu: the tests and the bench of a CUDA GPU · make publish PROFILE=...: one's own
# records become published ones. All set up first.

PYTHON ?= python3
CORES ?= 8
BIN := .venv/bin
READY := .venv/ready

PROFILE ?= cifar10
# Two processes; tests that look at one run of the workflow, or at one calibration, stay in one of them. End-to-end tests
# are few a file and take long: in the order of the files they come before many short ones, and no process waits.
TOGETHER := -n 2 --dist loadfile

.PHONY: setup reproduce paper docs demo gpu publish test test-all crash slurm kubernetes lint clean

reproduce: $(READY)
	$(BIN)/snakemake --cores $(CORES) all
	@echo; cat results/digits/tables/accuracy.md; echo
	@echo "Tables and figures are in results/digits/tables and results/digits/figures"

paper: $(READY)
	$(BIN)/snakemake --cores 1 paper

docs: $(READY)
	rm -rf docs/_build
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html
	PYTHONPATH=. $(BIN)/python workflow/scripts/website.py --out docs/_build/html/results results/published/*
	@echo "Open docs/_build/html/index.html"

publish: $(READY)
	PYTHONPATH=. $(BIN)/python workflow/scripts/publish.py --profile $(PROFILE)

demo: $(READY)
	@command -v npm > /dev/null || { echo "npm is missing, which brings onnxruntime-web: install Node.js"; exit 1; }
	npm install --prefix docs/demo --no-package-lock --no-audit --no-fund
	@echo "Open http://127.0.0.1:8000 in a browser; Ctrl+C ends it"
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory docs/demo

gpu: $(READY)
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
	  { echo "torch finds no CUDA GPU on this machine, so nothing is run"; exit 1; }
	$(BIN)/pytest tests/test_cuda.py
	$(BIN)/snakemake --cores 1 bench --config device=cuda

test: $(READY)
	$(BIN)/pytest $(TOGETHER)

test-all: $(READY)
	$(BIN)/pytest $(TOGETHER) --no-loadscope-reorder tests tests/e2e

crash: $(READY)
	$(BIN)/pytest tests/e2e/test_crash.py --kills 20

slurm: $(READY)
	$(BIN)/python -m pip install --quiet 'snakemake-executor-plugin-slurm>=2'
	$(BIN)/pytest tests/e2e/test_slurm.py --slurm

kubernetes: $(READY)
	$(BIN)/python -m pip install --quiet snakemake-executor-plugin-kubernetes snakemake-storage-plugin-s3
	$(BIN)/pytest tests/e2e/test_kubernetes.py --kubernetes

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up .venv: about 6 GB, a few minutes on the first run"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade --progress-bar on -e '.[workflow,onnx,docs,dev]'
	@touch $@

clean:
	rm -rf .venv .snakemake results/digits
