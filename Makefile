# Each of these does the set-up that it needs.

.PHONY: demo test check bench setup constraints clean

demo: ## mount a session, work in it from a shell and a container, unmount
	@scripts/demo

test: ## run all tests
	@scripts/setup test
	@scripts/test $(TESTS)

check: ## lint and type check
	@scripts/setup test
	@status=0; .venv/bin/ruff check || status=1; .venv/bin/mypy || status=1; exit $$status

bench: ## compare with the disk, rclone and JuiceFS, in one run, in the directory DIR (root only; some minutes)
	@scripts/setup test
	@.venv/bin/python bench/compare.py $(or $(DIR),$(shell mktemp -d))

setup: ## set this machine up, and no more
	@scripts/setup

constraints: ## take the newest versions of everything
	@scripts/constraints

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
