# Everything from a bare checkout: `make demo`, `make test`. Needs Python 3.11 (or 3.13) with pip; no Blender.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The first Python that the bpy module is made for and that really starts.
SUITS := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 13)))
PYTHON ?= $(shell for p in python3.11 python3.13 python3; do \
	$$p -c '$(SUITS)' 2>/dev/null && { echo $$p; break; }; done)

# What the bpy module is linked with: Debian's package, and the library in it.
LIBRARIES := libx11-6:libX11.so.6 libxrender1:libXrender.so.1 libxfixes3:libXfixes.so.3 libxi6:libXi.so.6 \
	libxxf86vm1:libXxf86vm.so.1 libxkbcommon0:libxkbcommon.so.0 libsm6:libSM.so.6 libice6:libICE.so.6 \
	libgl1:libGL.so.1 libegl1:libEGL.so.1

# Blender's side, in the oldest Python that it must run in.
INSIDE := asyncblend/__init__.py asyncblend/_lazy.py asyncblend/errors.py asyncblend/wire asyncblend/blender \
	blender_scripts

# $(call apt,packages): install them, or say what to type.
define apt
if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(1); \
else \
	echo "Debian packages are missing here. Type this, then make again:"; \
	echo "  sudo apt-get install $(1)"; \
	exit 1; \
fi
endef

# As many tests run at once as there are cores, but not more than eight: each takes some hundred megabytes. With
# ARGS="-n 0" they run one after another.
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 8 --ignore tests/ray
# A cluster of Ray is many processes, which would starve the tests beside it. 5: no test is called as ARGS say.
RAY = $(BIN)/python -m pytest tests/ray

.PHONY: help demo test test-all lint docs install libraries clean

help:
	@echo "make demo      render random cubes with what is here, and write figures with their keypoints"
	@echo "make test      run the tests with the bpy module, and some with a Blender executable; some minutes"
	@echo "make test-all  run every test with every kind of Blender, and with more random examples"
	@echo "               for both, ARGS='-k name' goes to pytest"
	@echo "make lint      ruff, mypy for both sides, and whether pyright knows the types of all that is public"
	@echo "make docs      build the pages in docs/ into site/"
	@echo "make clean     remove all that was made here, $(VENV) too"

demo: install libraries
	$(BIN)/asyncblend demo $(ARGS)

test: install libraries
	$(RAY) $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) $(ARGS)

test-all: install libraries
	$(RAY) --all $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) --all $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python --verifytypes asyncblend --ignoreexternal
	$(BIN)/mypy --python-version 3.10 --follow-imports=silent $(INSIDE)

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html, or type $(BIN)/mkdocs serve"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[bpy,dev,train]"
	@touch $@

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or 3.13 is needed: Blender's module bpy is made for no other."; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11"; \
		exit 1; \
	fi
	@$(PYTHON) -c '$(SUITS)' || { echo "PYTHON=$(PYTHON) is not Python 3.11 or 3.13."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		venv=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		$(call apt,$$venv); \
	}
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

libraries: | $(BIN)/python
	@if [ "$$(uname)" = Linux ]; then \
		missing=; \
		for pair in $(LIBRARIES); do \
			$(BIN)/python -c "import ctypes; ctypes.CDLL('$${pair#*:}')" 2>/dev/null \
				|| missing="$$missing $${pair%:*}"; \
		done; \
		if [ -n "$$missing" ]; then $(call apt,$${missing# }); fi; \
	fi

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis tmp
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
