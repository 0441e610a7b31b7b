.PHONY: dist docs notebooks matrix gpu check fix test test-all quickstart bench bench-smoke

check:
	ruff check .
	ruff format --check .
	mypy
	pytest -q tests/test_architecture.py tests/test_documents.py tests/test_limits.py tests/test_references.py

fix:
	ruff check --fix .
	ruff format .

# the quick suite: nothing that takes over five seconds; under three minutes on two idle cores
test:
	OMP_NUM_THREADS=1 pytest -n 2

# the slow tests too, as continuous integration runs them
test-all:
	OMP_NUM_THREADS=1 pytest -n 2 -m "not gpu and not network"

# sdist and wheel; with SOURCE_DATE_EPOCH set, the same bytes for the same commit
dist:
	rm -rf dist
	python -m build --outdir dist .

# the site, in site/: no network, and a warning is an error; open site/index.html
docs:
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

# runs docs/notebooks and keeps them, with what their cells printed, in runs/notebooks, where `make docs` finds them
notebooks:
	python docs/_site/run_notebooks.py

quickstart:
	turnppo train trainer_configs/sokoban_cpu.yaml

# writes benchmarks/README.md; a quarter of an hour on an idle machine
bench:
	for name in startup gae environments flops memory critics depths step threads; do python benchmarks/$$name.py --save > /dev/null || exit 1; done
	python benchmarks/step.py --threads 2 --save > /dev/null
	python benchmarks/step.py --layers 16 --save > /dev/null
	python benchmarks/report.py

# that every benchmark works, at its smallest; no figure is looked at
bench-smoke:
	for name in startup gae environments flops memory critics depths step reliability threads; do \
	  python benchmarks/$$name.py --smoke --json > smoke.json && python -m json.tool smoke.json > /dev/null \
    || { echo "benchmarks/$$name.py failed"; exit 1; }; done
	rm smoke.json
	python benchmarks/custom_run.py > /dev/null
	python benchmarks/short_rows.py --smoke > /dev/null
	python benchmarks/packing.py --smoke > /dev/null
	python benchmarks/host_memory.py --smoke > /dev/null
	python benchmarks/planted.py --smoke > /dev/null
	python benchmarks/soak.py --smoke > /dev/null
	python benchmarks/gpu.py --smoke --minutes 5 --out smoke.json > /dev/null && rm smoke.json

# what an accelerator computes and how fast, in at most nine minutes; writes gpu.json
gpu:
	python benchmarks/gpu.py

# the quick suite at the corners of the declared versions, each in an environment of its own; hours, and needs uv
matrix:
	python benchmarks/matrix.py
	python benchmarks/matrix.py --page > docs/versions.md
