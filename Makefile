# Each target is one line over a module that can be called without make; `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check
# A recipe is a file that assigns RECIPE; make calls it by its short name: 1.3b for gpt_1_3b.
RECIPES := $(patsubst recipes/%.py,%,$(shell grep -l '^RECIPE\b' recipes/*.py))
SIZES   := $(subst _,.,$(patsubst gpt_%,%,$(RECIPES)))

# Passed through: DS=ds_configs/x.json  ARGS="--set …"  HOSTFILE=hosts  RUN=runs/…  PROMPT="…"
FLAGS   = $(if $(DS),--deepspeed_config $(DS)) $(if $(HOSTFILE),--hostfile $(HOSTFILE)) $(ARGS)
RUNFLAG = $(if $(RUN),--run $(RUN))

.PHONY: help setup demo test test-avx2 lint recipes rehearse check clean-corpus inspect evaluate generate export report \
	bench bench-planner bench-search bench-data $(SIZES)

help:  ## this list
	@awk -F':.*## ' '/^[a-z0-9%. -]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "make SIZE           train a recipe: $(SIZES)"

setup: $(VENV)/.up-to-date  ## virtual environment in .venv: constraints.txt's versions, and the command stagecraft

$(VENV)/.up-to-date: requirements.txt requirements-dev.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements-dev.txt -c constraints.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## corpus, tokens, train, evaluate, generate, export, report, on this machine
	$(PY) -m commands prepare tiny
	$(PY) -m commands pretrain tiny $(FLAGS)
	$(PY) -m commands evaluate
	$(PY) -m commands generate --prompt "KING HENRY" --samples 3
	$(PY) -m commands export
	$(PY) -m commands report

test: lint  ## everything that needs no GPU, proved
	$(PY) -m pytest -n 2 $(ARGS)

test-avx2:  ## the same as on a processor with AVX2 alone, where bf16 and fp16 are computed in software
	@ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(MAKE) test

lint: setup  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

$(SIZES): setup
	$(PY) -m commands pretrain $@ $(FLAGS)

plan-%: setup  ## memory, time and cost of a recipe, without a GPU: make plan-345m ARGS="--search"
	@$(PY) -m commands plan $* $(if $(DS),--deepspeed_config $(DS)) $(ARGS)

check: setup  ## all that is wrong with a DeepSpeed JSON, or what it resolves to: make check DS=mine.json
	@$(PY) -m commands check $(DS) $(ARGS)

data-%: setup  ## fetch, clean and tokenise a recipe's data: make data-345m
	$(PY) -m commands prepare $* $(ARGS)

clean-corpus: setup  ## a cleaner corpus: CORPUS=my/texts OUT=cleaned ARGS="--stages default language:en"
	$(PY) -m commands clean $(CORPUS) --out $(OUT) $(ARGS)

inspect: setup  ## look at prepared data: DATA=tiny, a run or prepared folders
	@$(PY) -m commands inspect $(DATA) $(ARGS)

rehearse-%: setup  ## walk a recipe narrow on this machine: make rehearse-530b
	@$(PY) -m commands rehearse $* $(ARGS)

rehearse: $(addprefix rehearse-,$(SIZES))  ## rehearse all of them

recipes: setup  ## a table of the recipes
	@$(PY) -m recipes

evaluate: setup  ## loss, perplexity, bits per byte: RUN=… ARGS="--data my.txt"
	$(PY) -m commands evaluate $(RUNFLAG) $(ARGS)

generate: setup  ## write text: RUN=… PROMPT="…"
	$(PY) -m commands generate $(RUNFLAG) $(if $(PROMPT),--prompt "$(PROMPT)") $(ARGS)

export: setup  ## a Hugging Face folder: RUN=…
	$(PY) -m commands export $(RUNFLAG) $(ARGS)

report: setup  ## the summary and the curve of a run: RUN=…
	$(PY) -m commands report $(RUNFLAG) $(ARGS)

bench: setup  ## DeepSpeed's loss and speed beside plain PyTorch's
	$(PY) -m bench.plain $(ARGS)

bench-planner: setup  ## the planner's predictions beside published runs: ARGS="mine.csv --out predictions.csv"
	$(PY) -m bench.planner $(ARGS)

bench-search: setup  ## layouts that the planner's search judges in a minute
	$(PY) -m bench.search $(ARGS)

bench-data: setup  ## preparing and reading data beside other tools
	$(PY) -m bench.data $(ARGS)

.DEFAULT:
	@echo "error: there is no target $@; see make help, or make recipes for the sizes" >&2; exit 2
