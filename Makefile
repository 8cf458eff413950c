# make run    run every notebook and build the site      (NB=04_collab one of them, DATA=folder on other data)
# make test   run the notebooks as tests, then the quick tests
# make test-all    the same with the tests that take longer: kills, full disks, browsers, wheels; CI runs this
# make lab    open the notebooks in JupyterLab
# make docs   build the site from the notebooks as they are stored
# make check  are the package and the notebooks in step, and is the code clean
# make address  URL=https://... writes the repository's address into every place that has to spell it out
# make bench  time each benchmark against what people would use instead; tables and charts in benchmarks/results
# make mutants  put small faults into the package and see whether a test notices (SAMPLE=200 SEED=1); half an hour or more
# make host   HOST=lowest, or the name of a list in tests/hosts: sections and tests with those versions, in an environment of its own
# make hooks  clean what you commit, and show differences of notebooks so that they can be read
# What is printed is the same when another make calls this one, as `make test` does.
MAKEFLAGS += --no-print-directory
PYTHON ?= python3
extras := book,dev
WORKERS ?= 2
bin    := .venv/bin
ready  := .venv/.ready

.PHONY: run install test test-all nbdev_test lab docs check address bench mutants host hooks clean

run: $(ready)
	@$(bin)/lesson6 run $(NB) $(if $(DATA),--data "$(DATA)")

# Each notebook in a process of its own, as a reader's kernel is, forked from one that has imported fastai. One thread
# each, because two notebooks at once are faster than two threads in one.
nbdev_test: $(ready)
	@OMP_NUM_THREADS=1 $(bin)/python -m lesson6.book.testing --at-once $(WORKERS) nbs

# Two files of tests at once, for the same reason as two notebooks.
pytest := OMP_NUM_THREADS=1 $(bin)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: nbdev_test
	$(pytest) -m "not ci and not slow"

test-all: nbdev_test
	$(pytest)

lab: $(ready)
	$(bin)/jupyter lab --notebook-dir nbs --LabApp.default_url=/lab/tree/index.ipynb

docs: $(ready)
	@$(bin)/lesson6 site

# A copy is exported and cleaned, so that a failing check changes nothing here.
check: $(ready)
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && cp -R pyproject.toml lesson6 nbs "$$copy" && \
	(cd "$$copy" && "$(CURDIR)/$(bin)/nbdev-export" && "$(CURDIR)/$(bin)/nbdev-clean") && \
	for folder in nbs lesson6; do diff -r -x __pycache__ -x .ipynb_checkpoints $$folder "$$copy/$$folder" > "$$copy/diff" || \
	{ head -40 "$$copy/diff"; echo "$$folder/ is not in step: run nbdev-export and nbdev-clean, then commit."; exit 1; }; done
	$(bin)/ruff check
	$(bin)/lint-imports
	@echo "The package and the notebooks are in step."

# One after the other, for they would disturb each other. A file with a `main` is a benchmark.
bench: $(ready)
	@for f in $$(grep -l '^def main' benchmarks/*.py); do echo "$$f" && $(bin)/python "$$f" || exit 1; done

SAMPLE ?= 200
SEED ?= 1
mutants: $(ready)
	@$(bin)/python -c 'import cosmic_ray' 2> /dev/null || { $(call get,mutants); }
	@$(bin)/python -B -W ignore tests/mutants.py --sample $(SAMPLE) --seed $(SEED) --workers $(WORKERS)

HOST ?= lowest
host:
	bash tests/hosts/try.sh $(HOST) $(PYTHON)

address: $(ready)
	@$(bin)/python -m lesson6.book.address --url="$(URL)"

hooks: $(ready)
	$(bin)/nbdev-install-hooks
	$(bin)/pre-commit install

clean:
	rm -rf _site _run _mutants

# Installed once, and again only when what is to be installed changes, not when a file is only written again, as nbdev-export does.
$(ready): pyproject.toml settings.ini setup.py constraints.txt
	@cat $^ | cmp -s - $@ || $(MAKE) install
	@cat $^ > $@

# By uv, which is several times as fast; by pip where uv can't be had or doesn't reach the index that pip is set up for.
get = $(bin)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt uv \
	&& $(bin)/uv pip install --python $(bin)/python --constraint constraints.txt --editable '.[$(1)]' \
	|| $(bin)/python -m pip install --disable-pip-version-check --quiet --progress-bar on --constraint constraints.txt --editable '.[$(1)]'

install:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("lesson6 needs Python 3.11 or newer, and $(PYTHON) is %d.%d: run make PYTHON=python3.12, for example." % v)'
	$(PYTHON) -m venv .venv
	@$(call get,$(extras))
