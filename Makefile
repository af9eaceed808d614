# Needs Python 3.11 or 3.12 with pip. Environments are made on first use and again only when
# setup.cfg or the constraints change.

# The main job: discrete CQL on Pong, data set included.
RUN := examples/atari/atari_cql.py --task PongNoFrameskip-v4 --epoch 4 --update-per-epoch 2500 \
	--min-q-weight 500 --lr 3e-4 --target-update-freq 2000
ARGS :=

PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& echo $$python && break; done)

VENV1 := .venv
VENV2 := .venv-tianshou2
# With TensorFlow; apart, as TensorBoard loads that wherever it finds it, for seconds.
VENV3 := .venv-reference
RUN_EXTRAS := atari,cli
DEV_EXTRAS := atari,cellworld,cli,dev,minari,mujoco,report,zstd
# Tianshou 1.2 with Python's zlib, 2.x with isal: gzip is read by both. gymnasium 0.28 imports
# gymnasium-robotics and dm_control whenever it is imported, with lines of theirs on standard error
# that other tests look at, so their tests run beside the newer one.
MORE_EXTRAS := $(DEV_EXTRAS),dmc,fast,robotics

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help run test lint clean
.NOTPARALLEL:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-5s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV1)/run.stamp  ## train discrete CQL on Pong, on Tianshou 1.2; more flags as ARGS="--seed 1"
	$(VENV1)/bin/python $(RUN) $(ARGS)

test: $(VENV1)/dev.stamp $(VENV2)/dev.stamp $(VENV3)/reference.stamp  ## run the tests on Tianshou 1.2, on 2.x, and beside TensorFlow; flags as ARGS="-k cql"
	@failed=; for venv in $(VENV1) $(VENV2); do \
		echo "== pytest in $$venv"; \
		$$venv/bin/python -m pytest -q -n auto $(ARGS) || failed="$$failed $$venv"; \
	done; \
	echo "== pytest in $(VENV3)"; \
	$(VENV3)/bin/python -m pytest -q -m reference tests/data/convert || failed="$$failed $(VENV3)"; \
	test -z "$$failed" || { echo "tests failed in:$$failed"; exit 1; }

lint: $(VENV1)/dev.stamp  ## check style, format and types
	$(VENV1)/bin/ruff check .
	$(VENV1)/bin/ruff format --check .
	$(VENV1)/bin/mypy --strict tianshou_ext

clean:  ## delete environments, builds and caches; results in log/ stay
	rm -rf $(VENV1) $(VENV2) $(VENV3) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# $(call install,environment,constraints,extras)
define install
	$(if $(PYTHON),,$(error expected Python 3.11 or 3.12 on the PATH, found none; install it or pass PYTHON=/path/to/python))
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install -q -c $(2) -e ".[$(3)]"
	touch $@
endef

$(VENV1)/run.stamp: setup.cfg constraints/tianshou-1.2.txt
	$(call install,$(VENV1),constraints/tianshou-1.2.txt,$(RUN_EXTRAS))

$(VENV1)/dev.stamp: setup.cfg constraints/tianshou-1.2.txt
	$(call install,$(VENV1),constraints/tianshou-1.2.txt,$(DEV_EXTRAS))

$(VENV2)/dev.stamp: setup.cfg constraints/tianshou-2.txt
	$(call install,$(VENV2),constraints/tianshou-2.txt,$(MORE_EXTRAS))

$(VENV3)/reference.stamp: setup.cfg constraints/tianshou-2.txt
	$(call install,$(VENV3),constraints/tianshou-2.txt,reference)
