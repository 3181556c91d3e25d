# make run    the eight parts from end to end on sample scenes, results under runs/
# make test   the checks of every change; make slow-test has the long ones
# make lab    JupyterLab on Part 1, in a work folder of your own
# Each sets up .venv by itself the first time (about 6.5 GB, a few minutes).

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Jupyter wants to be asked before it serves as root, as in a container
ROOT_OK := $(if $(filter 0,$(shell id -u)),--allow-root)
# what the notebooks' own tests make lies apart from your runs
SMOKE := RVTUTORIAL_PRESET=smoke RVTUTORIAL_SITE=local RVTUTORIAL_HOME=$(CURDIR)/build/smoke

.PHONY: run test slow-test hpc-test lab bench docs lint notebooks pytest export format outputs \
	long-outputs clean help

help:
	@sed -n 's/^# //p' Makefile | head -4

run: $(VENV)/.ready
	@RVTUTORIAL_HOME=$(CURDIR) $(BIN)/python -m rvtutorial.course.lessons

test: lint notebooks pytest

lab: $(VENV)/.ready
	@mkdir -p lab && cp -rn nbs/. lab/
	@cd lab && RVTUTORIAL_HOME=$(CURDIR) ../$(BIN)/jupyter lab $(ROOT_OK) 01_tutorial_setup.ipynb

# the site of lessons and public names, build/site/index.html; nothing is executed
docs: $(VENV)/.ready
	@$(BIN)/python docs/site.py build/pages
	@$(BIN)/sphinx-build -q -W --keep-going -b html -c docs build/pages build/site
	@echo "build/site/index.html"

# jobs through a real Slurm and a real Apptainer, which it sets up and takes down again;
# needs root and apt-get, and says so where they are missing
hpc-test: $(VENV)/.ready
	@tests/cluster/run.sh $(CURDIR)/$(BIN)/python

# plain Raster Vision and the engine side by side: half an hour of both cores
bench: $(VENV)/.ready
	$(BIN)/python tests/bench/bench.py

# --- the checks, one by one

lint: $(VENV)/.ready
	$(BIN)/ruff check nbs rvtutorial tests
	$(BIN)/ruff check --select F821 rvtutorial
	$(BIN)/ruff format --check nbs tests

notebooks: $(VENV)/.ready
	@rm -rf build/smoke && mkdir -p build/smoke
	$(SMOKE) $(BIN)/nbdev_test --n_workers 1 --do_print --timing

# two processes of one thread each are quicker than one of two
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
pytest: $(VENV)/.ready
	$(PYTEST) -m "not slow"

# whole trainings, kills, real processes: half an hour of both cores
slow-test: $(VENV)/.ready
	$(PYTEST) -m slow

# --- for contributors

export: $(VENV)/.ready
	$(BIN)/nbdev_export && $(BIN)/nbdev_clean

format: $(VENV)/.ready
	$(BIN)/ruff check --fix nbs tests && $(BIN)/ruff format nbs tests && $(BIN)/nbdev_clean

# run every part and keep its new outputs in nbs/
outputs: run
	@$(BIN)/jupyter nbconvert --log-level WARN --coalesce-streams runs/lessons/0*.ipynb
	@sed -i 's#$(CURDIR)#/courses/rvtutorial#g' runs/lessons/0*.ipynb
	@cp runs/lessons/0*.ipynb nbs/
	@$(BIN)/ruff format -q nbs && $(BIN)/nbdev_clean

# run the lessons on networks and transfer learning with their long trainings, about 45
# minutes of both cores, and keep their outputs in nbs/; it goes on where it was stopped.
# TILES is the folder of real tiles, as the lesson describes them
LONG := nbs/models/networks.ipynb nbs/models/transfer.ipynb
long-outputs: $(VENV)/.ready
	@test -d "$(TILES)" || { echo "TILES=FOLDER of real tiles is needed, for the figure of them"; exit 2; }
	@RVTUTORIAL_HOME=$(CURDIR) RVTUTORIAL_TILES="$(abspath $(TILES))" \
	$(BIN)/jupyter nbconvert --log-level WARN --execute --inplace --coalesce-streams $(LONG)
	@$(BIN)/ruff format -q nbs && $(BIN)/nbdev_clean

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis

$(VENV)/.ready: pyproject.toml constraints.txt setup.sh
	@PYTHON=$(PYTHON) bash setup.sh $(VENV)
