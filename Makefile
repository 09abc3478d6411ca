# demo | test | test-oldest | dev | lint | docs | wheels | bench | bench-scale | base | sample | clean. Each builds .venv when it is missing or out of date.
PYTHON ?= python3
PLUGINS := $(sort $(wildcard plugins/netdiffusion-*))
EXTRA := $(sort $(wildcard plugins/extra/netdiffusion-*))
BIN := .venv/bin
STAMP := .venv/.stamp
test test-oldest: export OMP_NUM_THREADS = 1

LIGHT := $(filter-out %-stable-diffusion,$(PLUGINS))
OLDEST := .venv-oldest/bin/python

.PHONY: demo test test-oldest dev lint docs wheels bench bench-scale base sample clean
.DEFAULT_GOAL := dev

dev: $(STAMP)  ## the core and all first-party plugins, editable

$(STAMP): pyproject.toml constraints.txt $(addsuffix /pyproject.toml,$(PLUGINS))
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]' \
	    $(addprefix -e ./,$(PLUGINS:%-evaluators=%-evaluators[interop]))
	touch $@

demo: $(STAMP)  ## fine-tune on the bundled sample, generate, repair, evaluate, report
	$(BIN)/netdiff run netdiffusion_core/samples/lab --encoder nprint --rules tcp,udp,icmp \
	    --flows 12 --set backend.steps=120 --output runs/demo --overwrite

test: $(STAMP) .venv/.extra .venv/.debian  ## all tests; one distribution's: make test plugin=netdiffusion-nprint
	$(BIN)/python -m pip check
	$(BIN)/python -m pytest -n 2 --dist loadscope $(if $(plugin),plugins/$(plugin))

.venv/.extra: $(STAMP) $(addsuffix /pyproject.toml,$(EXTRA))
	$(BIN)/python -m pip install -c constraints.txt $(addprefix -e ./,$(EXTRA))
	touch $@

test-oldest: .venv-oldest/.stamp  ## the core and the plugins without torch, on the oldest versions they allow
	$(OLDEST) -m pip check
	$(OLDEST) -m pytest -p no:cacheprovider $(addprefix tests/test_,$(addsuffix .py,architecture capture cli config \
	    dataset dependencies pipeline plugins report resume)) $(LIGHT)

.venv-oldest/.stamp: pyproject.toml constraints-oldest.txt $(addsuffix /pyproject.toml,$(LIGHT))
	test -x $(OLDEST) || $(PYTHON) -m venv .venv-oldest
	$(OLDEST) -m pip install -c constraints-oldest.txt hypothesis pytest scapy -e . $(addprefix -e ./,$(LIGHT))
	touch $@

.venv/.debian: tools/debian.sh Makefile $(STAMP)
	tools/debian.sh tshark tcpreplay tcptrace tcpdump iproute2 chromium
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## write the references anew from the code, and the site from docs/
	$(BIN)/python tools/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

wheels: $(STAMP)  ## dist/: a wheel and a source archive of every distribution
	for folder in . plugins/netdiffusion $(PLUGINS) $(EXTRA); do \
	    (cd $$folder && "$(CURDIR)/$(BIN)/python" -m hatchling build -d "$(CURDIR)/dist") || exit 1; done

bench: $(STAMP) .venv/.bench  ## speed beside dpkt and scapy, time and memory of a run: make bench ARGS="--capture x.pcap --gigabytes 5"
	OMP_NUM_THREADS=1 $(BIN)/python tools/bench.py $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python tools/bench_scale.py --flows 1000 4000

bench-scale: $(STAMP)  ## time and memory for many flows: make bench-scale ARGS="--flows 100000"
	OMP_NUM_THREADS=1 $(BIN)/python tools/bench_scale.py $(ARGS)

.venv/.bench: $(STAMP)
	$(BIN)/python -m pip install -c constraints.txt dpkt
	touch $@

base: $(STAMP)  ## train the embedded base anew: make base DATA="folder folder"
	$(BIN)/netdiff train-base $(DATA) netdiffusion_core/samples/lab --output runs/base

sample: $(STAMP)  ## record the bundled sample anew (root, Debian)
	tools/lab/run.sh

clean:
	rm -rf .venv .venv-oldest runs dist site
