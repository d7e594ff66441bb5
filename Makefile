# make demo   set everything up and run the main job on the embedded phantom
# make test   set everything up and run the tests, with WORKERS=3 processes: some wait, so one more than two cores
# make board  run the grid of leaderboards/phantom, and build its tables and page from it
# make known  write adbench/results/known.json: sources of the methods, slices of the phantom
# make setup  only install, into .venv
PYTHON ?= python3
VENV   := .venv
WORKERS ?= 3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test board known lint clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || \
	  { echo "adbench needs Python 3.11.4 or newer; name one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/adbench run --method madad,ae,zscore,histeq,constant --dataset phantom --preset tiny --out demo

test: setup
	$(BIN)/python -m pytest --numprocesses $(WORKERS)

board: setup
	$(BIN)/adbench run --grid leaderboards/phantom/grid.yaml --out runs/board
	rm -f leaderboards/phantom/records/*.json
	$(BIN)/adbench leaderboard merge runs/board
	$(BIN)/adbench leaderboard build

known: setup
	$(BIN)/python -m adbench.leaderboard.make_known

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/architecture.py --check
	$(BIN)/python docs/attacks.py --check
	$(BIN)/python docs/results.py --check
	$(BIN)/python docs/notebooks.py --check

clean:
	rm -rf $(VENV) demo runs
