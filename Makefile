# From a fresh clone, set-up included: make demo, make test.
# PYTHON is the interpreter (3.10 or newer) that .venv is made from.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := demo
comma := ,
empty :=
space := $(empty) $(empty)
QUICK := $(DEMO)/quick
BOARD := docs/board

# The most expensive first, so that no core waits for the last one.
TINY := ltm-tiny sedd-uniform-tiny bd3lm-tiny vae-vq-tiny vae-tiny sedd-tiny md4-learned-tiny md4-tiny mdlm-tiny ar-tiny
TINY += ngram-tiny ngram-unigram-tiny ngram-uniform-tiny
SCORED := $(addprefix score-,$(TINY))
# Models of this size run several times faster in parallel, one thread each, than one after another on all cores.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)

# The track of real text: what each row trains, on text that has to lie in $(DATA). Any part of it, on any machine:
# make mini ROWS="ar ltm" SEEDS=0 DATA=data
MINI := $(DEMO)/mini
MINI_BOARD := docs/mini
DATA ?= $(LTM_DATA_DIR)
# Where these models train and are scored, cpu or cuda; on a GPU of its own, several rows at a time (JOBS) keep it busy.
DEVICE ?= cpu
SEEDS ?= 0 1 2
ROWS ?= ltm-published ltm-steps ltm ltm-random ltm-few ltm-many ltm-reused ar-flops mdlm-flops bd3lm-flops bd3lm sedd \
	vae vae-vq md4 md4-untimed mdlm ltm-unfitted ar ar-full ngram
# Executed training FLOPs of ltm-mini, at which rows of other families are trained too.
MINI_FLOPS := 1.395e14
mini.ltm := ltm-mini
mini.ltm-unfitted := ltm-mini --set posterior.steps=0
mini.ltm-steps := ltm-mini --set posterior.steps=8
mini.ltm-few := ltm-mini --set latents=3
mini.ltm-many := ltm-mini --set latents=48
mini.ltm-random := ltm-mini --set cross_start=random --set cross_rate=1
mini.ltm-reused := ltm-mini --set posterior.noise=reused
mini.ltm-published := ltm-mini --set posterior=published_code --set posterior.steps=8 --set cross_start=random \
	--set cross_rate=1
mini.ar := ar-mini
mini.ar-full := ar-mini --set decoder.window=none
mini.ar-flops := ar-mini --budget flops=$(MINI_FLOPS)
mini.vae := vae-mini
mini.vae-vq := vae-vq-mini
mini.mdlm := mdlm-mini
mini.mdlm-flops := mdlm-mini --budget flops=$(MINI_FLOPS)
mini.md4 := md4-mini
mini.md4-untimed := md4-mini --set time_conditioning=false
mini.sedd := sedd-mini
mini.bd3lm := bd3lm-mini
mini.bd3lm-flops := bd3lm-mini --budget flops=$(MINI_FLOPS)
mini.ngram := ngram-mini
MINI_RUNS := $(foreach seed,$(SEEDS),$(foreach row,$(ROWS),mini-$(row)-$(seed)))
# The row that is trained anew to see if its number stands; in CI another one each week.
REPEAT ?= $(word $(shell expr $$(date +%V) % 8 + 1),ar ltm mdlm vae bd3lm md4 sedd vae-vq)
EXCERPT := --excerpt 131072
HELD_OUT := --tasks novels $(EXCERPT)
FURTHER := ptb wikitext lm1b lambada ag_news pubmed arxiv openwebtext
ZERO_SHOT := $(subst $(space),$(comma),$(FURTHER) lambada_last_word) --excerpt 32768
ZERO_SHOT_AHEAD := $(subst $(space),$(comma),$(FURTHER:%=prequential_%)) --excerpt 32768
# How much the latents of these rows say, over fast steps and latents, and how much of the loss is inference.
DIAGNOSED := ltm ltm-random vae
# Whether thoughts inferred from the past help to predict what follows, beside a model that has none.
AHEAD := $(DIAGNOSED) ar
# The first decoder of these is scored with Langevin chains in place of a fitted q too.
CHAINED := ltm
CHAINS := --set inference=langevin
# Diffusion that shows words from left to right has an exact likelihood, and a row of its own.
IN_ORDER := --set unmasking=left_to_right
ORDERED := mdlm bd3lm
# An AR model of other text scores what the models write, and lends MAUVE its features.
SCORER := $(MINI)/models/scorer
WRITERS ?= ar ar-full ltm ltm-unfitted vae vae-vq bd3lm mdlm md4 sedd ngram
sampler.mdlm := --set sampler=cached --set sampling_steps=64
sampler.md4 := $(sampler.mdlm)
sampler.sedd := --set sampling_steps=64
# Further numbers of steps, for 128 samples each.
steps.mdlm := 4 16 256 1024
steps.sedd := 4 16 256
# Problems are put to the first seed of these rows, and to the same models with problems in their training text.
SOLVERS ?= ar ltm
MIXED := novels+4*gsm8k/train_rest+4*arithmetic
SHOTS := 0 5 10

AXE := 4.14.1

.PHONY: help setup demo leaderboard $(SCORED) check mini $(MINI_RUNS) mini-repeat mini-board board readme
.PHONY: mini-generation $(WRITERS:%=write-%) mini-problems $(SOLVERS:%=solve-%)
.PHONY: test test-emulated mutants torture axe lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train, evaluate and rank two tiny models on text that comes with Python (six minutes, CPU)"
	@echo "make leaderboard  train, evaluate, audit and rank every tiny model, JOBS at a time (default: one per core)"
	@echo "make check   fail if that leaderboard does not match its results"
	@echo "make mini    train, evaluate, audit and rank models of 3.35M parameters on real text (ROWS, SEEDS, DATA; a day)"
	@echo "make mini-generation  have those models write, and measure what they wrote (WRITERS, DATA; needs mauve-text)"
	@echo "make mini-problems  put problems to them, with and without problems in their training text (SOLVERS, DATA)"
	@echo "make mini-repeat  train a row of that board anew (REPEAT, DATA), and compare its perplexity with the board's"
	@echo "make mini-board  add what this machine has measured of it to $(MINI_BOARD) and README.md"
	@echo "make board   make leaderboard, and store it with its results in $(BOARD)"
	@echo "make readme  rebuild both boards, and README.md, from the stored results"
	@echo "make test    run all tests; those of the HTML page need Chromium, and make axe for accessibility"
	@echo "make test-emulated  the same, as on a processor with only AVX2"
	@echo "make mutants show every broken estimator to the audit, and every sound family (an hour or two; docs/validity.md)"
	@echo "make torture break commands off by 200 kills and 60 full disks, and compare what they end in (a quarter of an hour)"
	@echo "make lint    ruff and mypy"
	@echo "make setup   only make .venv, with the exact versions of constraints.txt"
	@echo "make clean   remove .venv, demo and caches"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# A third of the leaderboard's training text, in a home of its own. Finished training and scoring is not repeated.
demo: export LTM_HOME = $(QUICK)/home
demo: $(INSTALLED)
	$(BIN)/ltm-train ltm-tiny --corpus pydocs --budget tokens=150k
	$(BIN)/ltm-train ar-tiny --corpus pydocs --budget tokens=150k
	$(BIN)/ltm-eval --model ltm-tiny,ar-tiny --tasks pydocs --output $(QUICK)/results
	$(BIN)/ltm-leaderboard build --results $(QUICK)/results --out $(QUICK)/LEADERBOARD.md

leaderboard: export LTM_HOME = $(DEMO)/home
leaderboard: export OMP_NUM_THREADS = 1
leaderboard: $(INSTALLED)
	@mkdir -p $(DEMO)/logs
	@$(MAKE) --no-print-directory -j$(JOBS) $(SCORED)
	$(BIN)/ltm-leaderboard build --results $(DEMO)/results --out $(DEMO)/LEADERBOARD.md

# Tiny models train themselves on first use. Each writes its own log, since interleaved output would be unreadable.
$(SCORED): score-%: $(INSTALLED)
	@echo "$*: training, scoring, auditing; see $(DEMO)/logs/$*.log"
	@$(BIN)/ltm-eval --model $* --tasks pydocs,audit --output $(DEMO)/results >>$(DEMO)/logs/$*.log 2>&1 \
		|| { tail -n 20 $(DEMO)/logs/$*.log; echo "$*: failed"; exit 1; }
	@echo "$*: done"

check: $(INSTALLED)
	$(BIN)/ltm-leaderboard check --results $(DEMO)/results --out $(DEMO)/LEADERBOARD.md

# Copy results and their records, and nothing else that lies beside them.
add_results = cd $(1)/results && find . -mindepth 2 -name '*.json' -o -name '*.jsonl.gz' | tar -cf - -T - | tar -xf - -C $(CURDIR)/$(2)/results

# The board in the repository, with its results. CHANGELOG.md must name the results that are replaced.
board: leaderboard
	rm -rf $(BOARD)/results/*/
	mkdir -p $(BOARD)/results
	$(call add_results,$(DEMO),$(BOARD))
	$(MAKE) --no-print-directory readme

# After a command: its output goes to a log, whose end is shown if it fails.
logged = >>$(MINI)/logs/$@.log 2>&1 || { tail -n 20 $(MINI)/logs/$@.log; echo "$@: failed"; exit 1; }

mini mini-generation mini-problems: export LTM_HOME = $(MINI)/home
mini mini-generation mini-problems: export LTM_DATA_DIR = $(DATA)
mini mini-generation mini-problems: export OMP_NUM_THREADS = 1
mini: $(INSTALLED)
	@mkdir -p $(MINI)/logs $(MINI)/results
	@cp $(MINI_BOARD)/results/questions.json $(MINI)/results
	@$(MAKE) --no-print-directory -j$(JOBS) $(MINI_RUNS)
	$(BIN)/ltm-leaderboard build --results $(MINI)/results --out $(MINI)/LEADERBOARD.md

# Of each row the first seed is audited, whose verdict holds for the others, and has all likelihoods on all texts.
$(MINI_RUNS): seed = $(lastword $(subst -, ,$@))
$(MINI_RUNS): given = $(mini.$(patsubst mini-%-$(seed),%,$@))
$(MINI_RUNS): run = $(MINI)/models/$@
$(MINI_RUNS): scored = $(BIN)/ltm-eval --model $(firstword $(given)) --checkpoint $(run) --draws 4 --device $(DEVICE) --output $(MINI)/results
$(MINI_RUNS): $(INSTALLED)
	@echo "$@: training, scoring$(if $(filter 0,$(seed)),$(comma) auditing); see $(MINI)/logs/$@.log"
	@{ $(BIN)/ltm-train $(given) --corpus novels --seed $(seed) --device $(DEVICE) --output $(run) \
		&& $(scored) $(HELD_OUT) && $(scored) --tasks $(ZERO_SHOT) $(if $(filter-out 0,$(seed)),--headline-only) \
		$(if $(filter 0,$(seed)),&& $(scored) --tasks audit) \
		$(if $(filter $(DIAGNOSED:%=mini-%-0),$@),&& $(scored) --tasks diagnostics_novels) \
		$(if $(filter $(AHEAD:%=mini-%-0),$@),&& $(scored) --tasks prequential_novels $(EXCERPT) \
			&& $(scored) --tasks $(ZERO_SHOT_AHEAD)) \
		$(if $(filter $(CHAINED:%=mini-%-0),$@),&& $(scored) $(HELD_OUT) $(CHAINS) && $(scored) --tasks audit $(CHAINS)) \
		$(if $(filter $(ORDERED:%=mini-%-$(seed)),$@),&& $(scored) $(HELD_OUT) $(IN_ORDER) \
			$(if $(filter 0,$(seed)),&& $(scored) --tasks audit $(IN_ORDER))); } $(logged)
	@echo "$@: done"

# Whatever is finished is not repeated, training of the scorer included.
mini-generation: $(INSTALLED)
	@mkdir -p $(MINI)/logs
	$(BIN)/ltm-train ar-mini --corpus openwebtext --device $(DEVICE) --output $(SCORER)
	@$(MAKE) --no-print-directory -j$(JOBS) $(WRITERS:%=write-%)

$(WRITERS:%=write-%): write = $(BIN)/ltm-eval --model $(firstword $(mini.$*)) --checkpoint $(MINI)/models/mini-$*-0 \
	--scorer $(SCORER) --device $(DEVICE) --output $(MINI)/results $(sampler.$*)
$(WRITERS:%=write-%): write-%: $(INSTALLED)
	@echo "$*: generating; see $(MINI)/logs/$@.log"
	@{ $(write) --tasks generation_novels,continuation_novels --mauve $(SCORER) \
		$(foreach steps,$(steps.$*),&& $(write) --tasks generation_novels --samples 128 --set sampling_steps=$(steps)); } \
		$(logged)

mini-problems: $(INSTALLED)
	@mkdir -p $(MINI)/logs
	@$(MAKE) --no-print-directory -j$(JOBS) $(SOLVERS:%=solve-%)

$(SOLVERS:%=solve-%): solve-%: $(INSTALLED)
	@echo "$*: training on problems, solving; see $(MINI)/logs/$@.log"
	@{ $(BIN)/ltm-train $(mini.$*) --corpus '$(MIXED)' --device $(DEVICE) --output $(MINI)/models/mixed-$*-0 \
		$(foreach shots,$(SHOTS),$(foreach model,mini mixed,&& $(BIN)/ltm-eval --model $(firstword $(mini.$*)) \
			--checkpoint $(MINI)/models/$(model)-$*-0 --shots $(shots) --device $(DEVICE) --output $(MINI)/results \
			--tasks gsm8k_train_holdout$(comma)arithmetic$(comma)arithmetic_validation)); } \
		$(logged)

# Train a row of that board anew, and see if its perplexity lies where a further training seed's would.
mini-repeat: export LTM_HOME = $(DEMO)/repeat/home
mini-repeat: export LTM_DATA_DIR = $(DATA)
mini-repeat: model = $(DEMO)/repeat/models/$(REPEAT)
mini-repeat: board = --results $(MINI_BOARD)/results --out $(MINI_BOARD)/LEADERBOARD.md
mini-repeat: again = $(DEMO)/repeat/results
mini-repeat: $(INSTALLED)
	@$(BIN)/ltm-train $(mini.$(REPEAT)) --corpus novels --seed 3 --device $(DEVICE) --output $(model)
	@$(BIN)/ltm-eval --model $(firstword $(mini.$(REPEAT))) --checkpoint $(model) --draws 4 --device $(DEVICE) $(HELD_OUT) --output $(again)
	@$(BIN)/ltm-leaderboard check $(board) --again $(again)

# Add what this machine has measured to the results in the repository, and build their board.
mini-board: $(INSTALLED)
	mkdir -p $(MINI_BOARD)/results
	$(call add_results,$(MINI),$(MINI_BOARD))
	$(MAKE) --no-print-directory readme

readme: $(INSTALLED)
	$(BIN)/ltm-leaderboard build --results $(BOARD)/results --out $(BOARD)/LEADERBOARD.md
	$(BIN)/ltm-leaderboard build --results $(MINI_BOARD)/results --out $(MINI_BOARD)/LEADERBOARD.md --readme README.md

# One worker per core, one thread each: tests are small, and many threads on little work only wait for each other.
test: export OMP_NUM_THREADS = 1
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

# As on a processor without AVX-512 and bfloat16. No test's outcome may depend on the processor.
test-emulated: export ATEN_CPU_CAPABILITY = avx2
test-emulated: export ONEDNN_MAX_CPU_ISA = AVX2
test-emulated: test

# JOBS at a time; what the leaderboard trained is used again, and rows from the same code are not computed again.
mutants: export LTM_HOME = $(DEMO)/home
mutants: export OMP_NUM_THREADS = 1
mutants: $(INSTALLED)
	$(BIN)/python -m tests.mutants.matrix --jobs $(JOBS)

# Of the timed kills some come too late, hence a few more.
torture: export OMP_NUM_THREADS = 1
torture: $(INSTALLED)
	$(BIN)/python -m tests.support.torture --kills 150 --timed 80 --full 60

# The tests' only npm package: the accessibility checker for the HTML page.
axe:
	npm install --no-save --no-package-lock --ignore-scripts axe-core@$(AXE)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests

clean:
	rm -rf .venv $(DEMO) .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
