# Development tasks. `make help` lists them; PYTHON=... chooses the interpreter, ARGS=... goes to pytest.

PYTHON   ?= python3
VENV     ?= .venv
VERSIONS ?= 3.11 3.12 3.13
ARGS     ?=
MMU      ?= nested
TCG_TESTS ?= tests/kvm/api tests/kvm/test_loaders.py tests/kvm/test_interrupts.py tests/kvm/test_handlers.py
RIG      ?=
KERNEL   ?=
QEMU     ?=
KERNELS  ?= 6.1 6.12 sid
ROOTS    ?=
NEW      ?= 3.14 3.15

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help test check format pytest unit kvm tcg amd test-amd bench guests all-pythons new-pythons roots kernels clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r target does; do \
	    printf '  %-12s %s\n' "$$target" "$$does"; done

test: check pytest  ## every check and every test; makes .venv first

check: $(STAMP)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## format, and mend what the linter can mend by itself
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

pytest: $(STAMP)  ## every test, no other check
	$(BIN)/pytest $(ARGS)

unit: $(STAMP)  ## the tests that need no KVM
	$(BIN)/pytest tests/unit $(ARGS)

tcg: $(STAMP)  ## the tests that need a KVM, on the software one
	$(BIN)/pytest --accel tcg $(TCG_TESTS) $(ARGS)

kvm: $(STAMP)  ## the tests that need /dev/kvm
	$(BIN)/pytest tests/kvm $(ARGS)

# The command reaches the rig as it stands: make expands nothing in it.
unexport CMD
amd: export RIG_COMMAND := $(value CMD)
amd: $(STAMP)  ## run CMD='...' on an emulated AMD KVM; MMU=shadow, ADD=DIR, KERNEL=, QEMU= (docs/rig.md)
	@$(BIN)/python -m tools.rig run --mmu $(MMU) --kernel '$(KERNEL)' --qemu '$(QEMU)' $(if $(ADD),--add '$(ADD)')

test-amd: $(STAMP)  ## tests/kvm and tests/amd on that KVM, with nested and with shadow paging
	$(BIN)/python -m tools.rig test --kernel '$(KERNEL)' --qemu '$(QEMU)' $(RIG) -- $(ARGS)

kernels: $(STAMP)  ## the checks' part of test-amd on each of KERNELS="6.1 6.12 sid": three ages of KVM
	@failed= ; \
	for kernel in $(KERNELS); do \
	    echo "== kernel $$kernel"; \
	    $(BIN)/python -m tools.rig test --kernel "$$kernel" --qemu '$(QEMU)' --checks $(RIG) -- $(ARGS) || failed="$$failed $$kernel"; \
	done; \
	echo "== failed:$${failed:- none}"; [ -z "$$failed" ]

roots:  ## boot and tests in fresh Debian 12, 13 and sid (root; ROOTS="--release 13 --tools no", ARGS goes to pytest)
	$(PYTHON) -m tools.roots $(ROOTS) -- $(ARGS)

bench: $(STAMP)  ## measure beside C and QEMU (ARGS="--rounds 3"); table, bench.json and plot for docs/benchmarks.md
	$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check matplotlib
	$(BIN)/python -m bench --plot docs/benchmarks.svg $(ARGS)

guests:  ## assemble the guest programs anew (needs binutils)
	$(PYTHON) tools/build_guests.py

# A name on PATH may be a pyenv shim that refuses to run, and Debian's Python may lack venv: try before use.
all-pythons:  ## the tests on each of Python 3.11, 3.12 and 3.13 that is installed
	@failed= ; passed= ; missing= ; \
	for version in $(VERSIONS); do \
	    python= ; \
	    for candidate in python$$version "$$HOME"/.pyenv/versions/$$version.*/bin/python; do \
	        if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then python=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$python" ]; then missing="$$missing $$version"; continue; fi; \
	    echo "== Python $$version ($$python)"; \
	    if $(MAKE) --no-print-directory pytest PYTHON="$$python" VENV=.venv-$$version; \
	    then passed="$$passed $$version"; else failed="$$failed $$version"; fi; \
	done; \
	echo "== passed:$${passed:- none}; failed:$${failed:- none}; not found:$${missing:- none}"; \
	[ -z "$$failed" ] && [ -n "$$passed" ]

# Debian sid has them. Nothing is installed: they run in a folder, entered by chroot.
new-pythons:  ## the tests on Python 3.14 and 3.15 of Debian sid (root)
	$(PYTHON) -m tools.roots --release sid $(foreach version,$(NEW),--python $(version)) --tools yes --kvm yes $(ROOTS) -- $(ARGS)

clean:  ## remove what the other targets made
	rm -rf .venv .venv-* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
