.PHONY: develop test slow bench lint format

develop:  ## editable install; builds the extension against the torch that is installed
	pip install -c constraints.txt torch setuptools ninja pybind11
	pip install -c constraints.txt --no-build-isolation -e ".[dev]"

test:
	pytest

slow:
	pytest -m slow -s

bench:  ## the CPU's, results in benchmarks/results; one to two hours (a GPU's: benchmarks/gpu.sh)
	mkdir -p .benchmarks
	pytest benchmarks/bench_sinkhorn.py --size full --benchmark-json=.benchmarks/full.json
	python benchmarks/report.py "$$(python benchmarks/results.py .benchmarks/full.json)"

lint:
	ruff check .
	ruff format --check .
	mypy
	git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.h' 'tests/*.cpp' | xargs clang-format --dry-run --Werror

format:
	ruff check --fix .
	ruff format .
	git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.h' 'tests/*.cpp' | xargs clang-format -i
