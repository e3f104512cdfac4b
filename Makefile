.PHONY: develop test slow lint format

develop:  ## editable install; builds the extension against the torch that is installed
	pip install -c constraints.txt torch setuptools ninja pybind11
	pip install -c constraints.txt --no-build-isolation -e ".[dev]"

test:
	pytest

slow:
	pytest -m slow -s

lint:
	ruff check .
	ruff format --check .
	mypy
	git ls-files 'csrc/*.cpp' 'csrc/*.h' | xargs clang-format --dry-run --Werror

format:
	ruff check --fix .
	ruff format .
	git ls-files 'csrc/*.cpp' 'csrc/*.h' | xargs clang-format -i
