.PHONY: dev check test e2e bench types clean

dev:            ## editable install with everything the tests need
	pip install -e '.[dev]'

types:          ## the link folder through which type checkers see the package
	mkdir -p .types/sessile
	for f in runtime/*; do ln -sfn ../../$$f .types/sessile/$$(basename $$f); done
	ln -sfn ../../router .types/sessile/router
	ln -sfn ../../sessions .types/sessile/sessions

check: types    ## lint, format, types
	ruff check .
	ruff format --check .
	mypy

test:           ## everything that needs no GPU and no other engine
	pytest

e2e:
	pytest tests/e2e

bench:          ## what the router costs, and what sessions gain
	sessile bench --cost
	sessile bench --policies session,round_robin

clean:
	rm -rf build dist *.egg-info .types .mypy_cache .ruff_cache .pytest_cache
