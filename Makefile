.PHONY: check test quickstart

check:
	ruff check .
	ruff format --check .
	mypy
	pytest -q tests/test_architecture.py tests/test_documents.py

test:
	pytest

quickstart:
	turnppo train trainer_configs/sokoban_cpu.yaml
