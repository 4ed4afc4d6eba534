# Each target is one line over a module that can be called without make; `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check
# A recipe is a file that assigns RECIPE; make calls it by its short name: 1.3b for gpt_1_3b.
RECIPES := $(patsubst recipes/%.py,%,$(shell grep -l '^RECIPE\b' recipes/*.py))
SIZES   := $(subst _,.,$(patsubst gpt_%,%,$(RECIPES)))

# Passed through: DS=ds_configs/x.json  ARGS="--set …"  CLUSTER=slurm  NODES=4  DRY_RUN=1  HOSTFILE=hosts  NAME=mine
# FROM=run@step  RUN=run  PROMPT="…"
# Texts reach a command by way of the environment, letter by letter: neither make nor the shell acts upon what is in
# them. ARGS holds words and flags, and the shell reads it as on any command line.
TEXTS   := DS CLUSTER NODES HOSTFILE RUN PROMPT CORPUS OUT DATA NAME FROM FOLDER NOTE A B
# Names that mean something else in an environment (WSL has NAME in everybody's) count on the command line only.
$(foreach name,NAME FROM FOLDER NOTE A B CLUSTER NODES DRY_RUN,$(if $(findstring environment,$(origin $(name))),$(eval $(name) :=)))
$(foreach name,$(TEXTS),$(if $(value $(name)),$(eval override export $(name) := $$(value $(name)))))
text    = $(if $($(1)),$(2) "$$$(1)")
ENGINE  = $(call text,DS,--deepspeed_config)
# What a dry run prints can be copied: make does not show its own command above it.
QUIET   = $(if $(DRY_RUN),@)
PLACE   = $(call text,CLUSTER,--cluster) $(call text,NODES,--nodes) $(if $(DRY_RUN),--dry-run)
FLAGS   = $(ENGINE) $(PLACE) $(call text,HOSTFILE,--hostfile) $(call text,NAME,--name) $(call text,FROM,--from) $(ARGS)
RUNFLAG = $(call text,RUN,--run)

.PHONY: help setup demo test test-faults test-kills test-clusters test-avx2 lint recipes rehearse check clusters preflight \
	status logs stop clean-corpus inspect watch \
	evaluate generate look chat serve export import report runs note save clean-runs compare new-recipe diff bench bench-planner bench-search \
	bench-data bench-decode bench-quantize bench-taught bench-control $(SIZES)

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

test-faults: setup  ## runs whose processes are killed, stopped and hung
	$(PY) -m pytest -n 2 -m "faults or not faults" tests/faults $(ARGS)

test-kills: setup  ## a run that is killed 50 times, at random, ends with the weights of an unbroken one
	@STAGECRAFT_KILLS=50 $(PY) -m pytest -m faults tests/faults/test_kills.py $(ARGS)

test-clusters: setup  ## a real Slurm of two nodes, and hosts with ssh servers, made on this machine and ended again
	@bash tests/install.sh clusters
	$(PY) -m pytest -n 2 --dist loadfile -rs -m clusters tests/clusters $(ARGS)

test-avx2:  ## the same as on a processor with AVX2 alone, where bf16 and fp16 are computed in software
	@ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(MAKE) test

lint: setup  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

$(SIZES): setup
	$(QUIET)$(PY) -m commands pretrain $@ $(FLAGS)

plan-%: setup  ## memory, time and cost of a recipe, without a GPU: make plan-345m ARGS="--search"
	@$(PY) -m commands plan $* $(ENGINE) $(ARGS)

preflight-%: setup  ## whether the machines are ready for a recipe: make preflight-13b HOSTFILE=hosts CLUSTER=mine.toml
	@$(PY) -m commands preflight $* $(ENGINE) $(call text,HOSTFILE,--hostfile) $(PLACE) $(ARGS)

preflight: preflight-tiny  ## the same for the smallest recipe: what this machine is like

check: setup  ## all that is wrong with a DeepSpeed JSON, or what it resolves to: make check DS=mine.json
	@$(PY) -m commands check $(call text,DS) $(ARGS)

data-%: setup  ## fetch, clean and tokenise a recipe's data: make data-345m
	$(QUIET)$(PY) -m commands prepare $* $(PLACE) $(ARGS)

clean-corpus: setup  ## a cleaner corpus: CORPUS=my/texts OUT=cleaned ARGS="--stages default language:en"
	$(PY) -m commands clean $(call text,CORPUS) $(call text,OUT,--out) $(ARGS)

inspect: setup  ## look at prepared data: DATA=tiny, a run or a prepared folder
	@$(PY) -m commands inspect $(call text,DATA) $(ARGS)

rehearse-%: setup  ## walk a recipe narrow on this machine: make rehearse-530b
	@$(PY) -m commands rehearse $* $(ARGS)

rehearse: $(addprefix rehearse-,$(filter-out tune.%,$(SIZES)))  ## rehearse all of them that tune no other model

recipes: setup  ## a table of the recipes
	@$(PY) -m recipes

new-recipe: setup  ## a copy of a recipe, to change: NAME=mine FROM=345m
	@$(PY) -m commands new-recipe $(call text,NAME) $(call text,FROM,--from) $(ARGS)

diff: setup  ## what two recipes and their resolved JSONs do not share: A=345m B=760m
	@$(PY) -m commands diff $(call text,A) $(call text,B) $(ARGS)

watch: setup  ## a run while it goes, whoever started it: RUN=…
	@$(PY) -m commands watch $(call text,RUN) $(ARGS)

clusters: setup  ## clusters that come with the project, or a check of your own: CLUSTER=mine.toml
	@$(PY) -m commands clusters $(call text,CLUSTER) $(ARGS)

status: setup  ## how a run is, and what its scheduler says: RUN=…
	@$(PY) -m commands status $(RUNFLAG) $(ARGS)

logs: setup  ## what a run printed: RUN=… ARGS="--rank 7 --follow"
	@$(PY) -m commands logs $(RUNFLAG) $(ARGS)

stop: setup  ## have a run save and end: RUN=…
	@$(PY) -m commands stop $(RUNFLAG) $(ARGS)

evaluate: setup  ## loss, perplexity, bits per byte: RUN=… ARGS="--data my.txt", or ARGS="--tasks lambada_openai"
	$(PY) -m commands evaluate $(RUNFLAG) $(ARGS)

generate: setup  ## write text: RUN=… PROMPT="…"
	$(PY) -m commands generate $(RUNFLAG) $(call text,PROMPT,--prompt) $(ARGS)

look: setup  ## attention, losses and logit lens of a text, as a page: RUN=… PROMPT="…"
	$(PY) -m commands look $(RUNFLAG) $(call text,PROMPT,--prompt) $(ARGS)

chat: setup  ## talk with a run in this terminal: RUN=… ARGS="--system …"
	@$(PY) -m commands chat $(RUNFLAG) $(ARGS)

serve: setup  ## an OpenAI-compatible server of a run's export: RUN=… ARGS="--port 8080"
	@$(PY) -m commands serve $(RUNFLAG) $(ARGS)

export: setup  ## a Hugging Face folder: RUN=… ARGS="--dtype bf16", ARGS="--format gguf"
	$(PY) -m commands export $(RUNFLAG) $(ARGS)

import: setup  ## a model to train on from: FOLDER=gpt2 ARGS="--recipe 125m"
	$(PY) -m commands import $(call text,FOLDER) $(call text,NAME,--name) $(ARGS)

report: setup  ## the summary and the curve of a run: RUN=…
	$(PY) -m commands report $(RUNFLAG) $(ARGS)

runs: setup  ## a table of the runs: ARGS="345m"
	@$(PY) -m commands runs $(ARGS)

note: setup  ## a note in a run's record: RUN=… NOTE="…"
	@$(PY) -m commands note $(call text,RUN) $(call text,NOTE) $(ARGS)

save: setup  ## have a run that trains on this machine save now: RUN=…
	@$(PY) -m commands save $(call text,RUN) $(ARGS)

clean-runs: setup  ## remove old checkpoints and starts that came to nothing: RUN=… ARGS="--older 30"
	@$(PY) -m commands clean-runs $(call text,RUN) $(ARGS)

try-%: setup  ## try settings of a recipe, a run each: make try-345m ARGS="--set optimizer.lr=1e-4,3e-4"
	$(PY) -m commands try $* $(if $(DS),--deepspeed_config $$DS) $(call text,HOSTFILE,--hostfile) $(ARGS)

compare: setup  ## runs beside each other, in a table and a picture: RUNS="a b c"
	@$(PY) -m commands compare $(RUNS) $(ARGS)

bench: setup  ## DeepSpeed's loss and speed beside plain PyTorch's
	$(PY) -m bench.plain $(ARGS)

bench-planner: setup  ## the planner's predictions beside published runs: ARGS="mine.csv --out predictions.csv"
	$(PY) -m bench.planner $(ARGS)

bench-search: setup  ## layouts that the planner's search judges in a minute
	$(PY) -m bench.search $(ARGS)

bench-data: setup  ## preparing and reading data beside other tools
	$(PY) -m bench.data $(ARGS)

bench-decode: setup  ## writing text beside transformers' generate
	$(PY) -m bench.decode $(ARGS)

bench-quantize: setup  ## bytes, loss and speed of rounded weights: ARGS="EXPORT --data FOLDER/validation"
	$(PY) -m bench.quantize $(ARGS)

bench-taught: setup  ## what a tuned model has to beat: ARGS="tune_sentiment tune_read"
	$(PY) -m bench.taught $(ARGS)

bench-control: setup  ## how far named prefixes move the sentiment of reviews: ARGS="--control RUN --classifier RUN"
	$(PY) -m bench.control $(ARGS)

.DEFAULT:
	@echo "error: there is no target $@; see make help, or make recipes for the sizes" >&2; exit 2
