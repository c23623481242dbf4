# Everything from a bare checkout: `make demo`, `make test`. Needs Python 3.11, 3.12 or 3.13 with pip; no Blender.

comma := ,
VENV := .venv
BPY5 := .venv-bpy5
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# rerun needs numpy 2, which bpy 4.5 excludes: it has an environment of its own, with all else from the first one.
VIEW := .venv-view
VIEWER := rerun-sdk==0.41.0 numpy==2.4.6 pyarrow==26.0.1

# The trainer whose own code reads the format "yolo" in a test, with what it imports. Each brings more than is wanted here.
LOAD := .venv-load
LOADERS := ultralytics==8.4.190 opencv-python-headless==5.0.0.93 torchvision==0.28.0

# The first Python that suits, the best one first, and that really starts.
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.13 python3.12 python3; do \
	$$p -c '$(SUITS)' 2>/dev/null && { echo $$p; break; }; done)

# Where the bpy module is installed: `here`, beside torch, or `apart`, in an environment of its own. The latter is so in
# any case with Python 3.12, which the module is not made for.
BPY ?= here
EXTRAS := $(if $(filter apart,$(BPY)),,bpy$(comma))dev,train

# Prints the path of a Python 3.13 that starts, or an empty line.
FIND313 := import asyncio; from asyncblend.fleet.install.embedded import working_python; \
	print((asyncio.run(working_python((3, 13))) or ("", ""))[1])

# What the bpy module is linked with: Debian's package, and the library in it.
LIBRARIES := libx11-6:libX11.so.6 libxrender1:libXrender.so.1 libxfixes3:libXfixes.so.3 libxi6:libXi.so.6 \
	libxxf86vm1:libXxf86vm.so.1 libxkbcommon0:libxkbcommon.so.0 libsm6:libSM.so.6 libice6:libICE.so.6 \
	libgl1:libGL.so.1 libegl1:libEGL.so.1

# Blender's side, in the oldest Python that it must run in.
INSIDE := asyncblend/__init__.py asyncblend/_lazy.py asyncblend/errors.py asyncblend/wire asyncblend/blender \
	blender_scripts

# $(call beside,environment): let it have all that the first one has and it has not itself, asyncblend too.
BESIDE := import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))
define beside
$(BIN)/python -c '$(BESIDE)' > "$$(echo $(1)/lib/python3.*/site-packages)/beside.pth"
endef

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

# Let Python keep what it compiled, whatever the environment says: the tests start thousands of small processes that import
# asyncblend, and each would take half as long again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-most test-all lint docs install blender blender5 viewer loaders libraries clean

help:
	@echo "make demo      render random cubes with what is here, and write figures with their keypoints"
	@echo "make test      run most tests, with the bpy module and a few with a Blender executable: five to ten minutes"
	@echo "make test-most run all but the slowest tests, with every kind of Blender: twenty minutes"
	@echo "make test-all  run every test with every kind of Blender, bpy 5 too where Python 3.13 is there, and with more"
	@echo "               random examples; for both, ARGS='-k name' goes to pytest"
	@echo "make viewer    rerun, with which \`asyncblend view\` is tested, in $(VIEW); these two make it too"
	@echo "make loaders   ultralytics, which reads exports in a test, in $(LOAD); these two make it too"
	@echo "make lint      ruff, mypy for both sides, and whether pyright knows the types of all that is public"
	@echo "make docs      build the pages in docs/ into site/"
	@echo "make clean     remove all that was made here, $(VENV) and its like too"
	@echo "With BPY=apart, a new $(VENV) has no bpy: Blender gets an environment of its own."

demo: blender
	$(BIN)/asyncblend demo $(ARGS)

test: blender
	$(RAY) $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) $(ARGS)

# What continuous integration runs: all tests of clusters, and of the others those that are quick or in a short run.
test-most: blender blender5 viewer loaders
	$(RAY) --all $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) --most $(ARGS)

test-all: blender blender5 viewer loaders
	$(RAY) --all $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) --all $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=$(CURDIR) pyright --verifytypes asyncblend --ignoreexternal
	$(BIN)/mypy --python-version 3.10 --follow-imports=silent $(INSIDE)

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html, or type $(BIN)/mkdocs serve"

install: $(STAMP)

# An older pip, such as that of Debian 12, cannot install into an environment of Python 3.13.
NEW_PIP := import pip, sys; sys.exit([int(n) for n in pip.__version__.split(".")[:2]] < [23, 2])

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -c '$(NEW_PIP)' || $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -U pip
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

# There is a bpy module somewhere: in this environment, or in one that `asyncblend` makes in the user's cache.
blender: install libraries
	@$(BIN)/python -c 'from asyncblend.fleet.discovery import find_blender; find_blender("bpy")' 2>/dev/null \
		|| PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/asyncblend doctor --fix --blender bpy

# Blender 5 for the tests, without torch: the host is this environment. Debian's Python may come without ensurepip, so the
# pip of this environment installs there.
blender5: install libraries
	@[ $(BPY5)/.installed -nt constraints.txt ] && exit 0; \
	python=$$($(BIN)/python -c '$(FIND313)'); \
	[ -n "$$python" ] || { echo "There is no Python 3.13 here, so bpy 5 is not tested."; exit 0; }; \
	"$$python" -m venv --without-pip $(BPY5) \
		&& $(BIN)/python -m pip --python $(BPY5)/bin/python install --disable-pip-version-check -c constraints.txt bpy numpy pyzmq \
		&& touch $(BPY5)/.installed

viewer: $(VIEW)/.installed

$(VIEW)/.installed: $(STAMP)
	$(BIN)/python -m venv $(VIEW) || { rm -rf $(VIEW); exit 1; }
	$(call beside,$(VIEW))
	$(VIEW)/bin/python -m pip install --disable-pip-version-check --no-deps $(VIEWER)
	@touch $@

loaders: $(LOAD)/.installed

$(LOAD)/.installed: $(STAMP)
	$(BIN)/python -m venv --without-pip $(LOAD) || { rm -rf $(LOAD); exit 1; }
	$(call beside,$(LOAD))
	$(BIN)/python -m pip --python $(LOAD)/bin/python install --disable-pip-version-check --no-deps $(LOADERS)
	@touch $@

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11, 3.12 or 3.13 is needed."; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11"; \
		exit 1; \
	fi
	@$(PYTHON) -c '$(SUITS)' || { echo "PYTHON=$(PYTHON) is not Python 3.11, 3.12 or 3.13."; exit 1; }
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
	rm -rf $(VENV) $(BPY5) $(VIEW) $(LOAD) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis tmp
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
