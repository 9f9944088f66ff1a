# Two commands matter: `make reproduce` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
COHORT ?= phantom
PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PREFECT_PORT MLFLOW_PORT
# Nobody is told what runs here.
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_OFFLINE := 1
# A stage is a process of its own: where Python may not keep what it has compiled, each of them compiles torch again.
unexport PYTHONDONTWRITEBYTECODE

READY := .venv/.ready

.PHONY: help setup reproduce sweep continual test lint format readme pretrain up down status clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo
	@echo 'COHORT=<name>   with reproduce, sweep and continual: a cohort of conf/cohort/ (real images are looked for in $$SEMIFLOW_DATA, default ../shared/data)'
	@echo 'PREFECT_PORT=$(PREFECT_PORT) MLFLOW_PORT=$(MLFLOW_PORT)   with up: where to listen, on this machine only'

setup: $(READY)  ## the virtual environment, from requirements.lock

$(READY): requirements.lock pyproject.toml
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --requirement requirements.lock
	.venv/bin/python -m pip check
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: $(READY)  ## everything from images to a logged model, then the results table
	target=$$(python -m tasks.lay_out $(COHORT)); dvc repro "$$target"
	dvc repro --single-item report record
	@python -m pipelines.report.table

sweep: $(READY)  ## every system, protocol and number of shots of the cohort's sweep, then the report (goes on where it stopped)
	target=$$(python -m tasks.lay_out $(COHORT) --sweep); dvc repro "$$target"
	dvc repro --single-item report

continual: $(READY)  ## sites one after another: ITL and its baselines, every site measured after each, then the report (goes on where it stopped)
	target=$$(python -m tasks.lay_out $(COHORT) --continual); dvc repro "$$target"
	dvc repro --single-item report

test: $(READY) lint  ## everything CI runs
	python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 10

lint: $(READY)  ## ruff and the import contracts
	ruff check .
	lint-imports

format: $(READY)  ## what ruff can fix by itself
	ruff check --fix .

readme: $(READY)  ## put the finished default run's table and figure into README.md
	python -m pipelines.report.readme

pretrain: $(READY)  ## train the embedded backbone again (two hours on two idle cores; changes models/atlas)
	python -m pipelines.backbones.atlas.pretrain --out models/atlas --steps 12500
	python -m pipelines.backbones.atlas.pretrain --out models/atlas --start models/atlas --steps 22500
	dvc commit --force models/atlas/dvc.yaml

up: $(READY)  ## Prefect server, MLflow UI and the served flows, on this machine only
	python -m tasks.services up

down: $(READY)  ## stop what `up` started
	python -m tasks.services down

status: $(READY)  ## what of `up` is running
	python -m tasks.services status

clean:  ## remove what runs made (data/, reports/, cohorts/, stores), not the environment
	rm -rf data reports cohorts mlruns .prefect .run dvc.lock .dvc/cache .dvc/tmp
