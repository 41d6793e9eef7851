# Two commands from a fresh clone: `make demo` shows the main job, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The oldest of every library (constraints-oldest.txt) has an environment of its own.
OLDEST := .venv-oldest
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# No model or data hub is asked for anything.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
# Tests run side by side, a file of them in one process; each with one thread.
TEST_PROCESSES ?= 2
# Real data beside the checkout is used where no other folder is named.
export LR_DIST_DATA ?= $(wildcard ../shared/data)

.PHONY: demo test test-oldest lint format docs bench bench-search glue fuzz clean

demo: $(VENV)/.demo ## the main job on packaged weights and generated tasks; nothing but packages is downloaded
	$(OFFLINE) $(BIN)/lr-dist compare --config configs/demo.yaml --output runs/demo

test: $(VENV)/.dev ## the tests; those on real GLUE run where LR_DIST_DATA or ../shared/data is a folder
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

# What the libraries' versions bear on; not what is slow, and not what looks at lr-dist alone.
OLDEST_TESTS := tests/test_callback.py tests/test_schedulers.py tests/test_resume.py tests/test_exact_resume.py \
	tests/test_exact_resume_alone.py tests/test_lightning_internals.py \
	tests/test_groups.py tests/test_distribution.py tests/test_huggingface.py tests/test_huggingface_resume.py \
	tests/test_peft.py tests/cli tests/packaging/test_versions.py tests/presets tests/report tests/tasks/test_custom.py \
	tests/search/test_space.py tests/search/test_study.py tests/search/test_search_command.py
OLDEST_NOT := ctrl_c or sigterm or goes_away or killed or missing_trials
# What the oldest transformers and peft do not have: a greedy schedule, an option of the Trainer's, Muon for it, ShadowConfig.
OLDEST_NOT += or every_schedule_of_the_library or equal_the_larger_batch or activation_checkpointing \
	or whose_parts_have_groups_of_their_own or a_network_beside_the_layers

test-oldest: $(OLDEST)/.test ## a subset of the tests with the oldest version of every library
	$(OFFLINE) OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -k 'not ($(OLDEST_NOT))' $(OLDEST_TESTS)

lint: $(VENV)/.dev ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

docs: $(VENV)/.docs ## the site of the documentation, in site/; any warning, such as a link that leads nowhere, is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --clean

bench: $(VENV)/.dev ## the measurements in docs/figures.md, JSON in runs/bench
	mkdir -p runs/bench
	$(OFFLINE) $(BIN)/python tests/benchmarks/step_overhead.py --output runs/bench/step_overhead.json
	$(OFFLINE) $(BIN)/python tests/benchmarks/step_overhead.py --layers 12 --output runs/bench/step_overhead_12.json
	$(OFFLINE) $(BIN)/python tests/benchmarks/step_overhead.py --layers 24 --output runs/bench/step_overhead_24.json
	$(OFFLINE) $(BIN)/python tests/benchmarks/import_time.py --output runs/bench/import_time.json
	$(OFFLINE) $(BIN)/python tests/benchmarks/two_tasks.py --output runs/bench/two_tasks.json

bench-search: $(VENV)/.dev ## the search's measurements (an hour); both go on where they were stopped
	mkdir -p runs/bench
	$(OFFLINE) $(BIN)/python tests/benchmarks/search_throughput.py --output runs/bench/search_throughput.json
	$(OFFLINE) $(BIN)/python tests/benchmarks/search_scale.py --folder runs/bench/scale --output runs/bench/search_scale.json

glue: $(VENV)/.demo ## the README's first result (half an hour on 2 cores); needs GLUE in LR_DIST_DATA or ../shared/data
	$(OFFLINE) $(BIN)/lr-dist compare --config configs/glue-first-result.yaml

$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch -e '.[dev]' einconv einops opt-einsum
	# Without torchvision, which it asks for and does not import: PyPI's build of it does not load beside a CPU build of torch.
	$(PIP) --no-deps kronfluence
	touch $@ $(VENV)/.demo

# Without lr-dist itself: the docstrings are read, not imported.
$(VENV)/.docs: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) 'mkdocs-material<10' 'mkdocstrings[python]<2'
	touch $@

$(OLDEST)/.test: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-oldest.txt torch -e '.[test]'
	touch $@

fuzz: $(VENV)/.dev ## a million generated cases of wrong input (hours); goes on where it was
	$(OFFLINE) $(BIN)/python tests/fuzz/at_length.py --cases 1000000

clean:
	rm -rf $(VENV) $(OLDEST) runs build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
