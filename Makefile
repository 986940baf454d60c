# Thin: every target is a script in tools/. `make help` lists them.
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := build
.PHONY: build run test lab bench probe install check help

PREFIX ?= /usr/local
# As typed: the shell that runs the target splits and unquotes it, make expands nothing in it.
export HUSK_MAKE_ARGS := $(value ARGS)

build: ## set everything up: packages, toolchain, guest kernel, workspace; staged in target/dist
	@tools/build

run: ## run the example function in a sandbox, or with ARGS='…' any `husk run …`
	@tools/build
	@if [ -z "$$HUSK_MAKE_ARGS" ]; then examples/python/run; \
	else eval "set -- $$HUSK_MAKE_ARGS" && tests/lab/husk run "$$@"; fi

test: ## every test; the last line is: N passed, N failed, N skipped (FILTER=text: integration tests of that name; PEER_FIRECRACKER=path: with Firecracker)
	@FILTER='$(FILTER)' PEER_FIRECRACKER='$(PEER_FIRECRACKER)' tools/tests

lab: ## run a command in the lab's machine: ARGS='husk run -- uname -a' (options of tests/lab/run before --: LAB='--cpus 4')
	@tools/build
	@eval "set -- $$HUSK_MAKE_ARGS" && tests/lab/run $(LAB) -- "$${@:-sh}"

bench: ## stages of a cold run, one more cell and the devices' work in instructions, then in time; PEER_FIRECRACKER=path [PEER_JAILER=path] adds Firecracker
	@PEER_FIRECRACKER='$(PEER_FIRECRACKER)' PEER_JAILER='$(PEER_JAILER)' tools/bench

probe: ## what each wall denies, as tables (docs/isolation.md); PEER_JAILER=path PEER_FILTERS=path [PEER_FIRECRACKER=path] adds Firecracker
	@PEER_JAILER='$(PEER_JAILER)' PEER_FILTERS='$(PEER_FILTERS)' PEER_FIRECRACKER='$(PEER_FIRECRACKER)' tools/probe

install: ## install what `make build` made: PREFIX=/usr/local, DESTDIR=
	@[ -x target/dist/husk ] || tools/build
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/lib/husk'
	install -m 755 target/dist/husk '$(DESTDIR)$(PREFIX)/bin/husk'
	install -m 755 target/dist/husk-jailer target/dist/husk-runtime target/dist/husk-fs target/dist/husk-init '$(DESTDIR)$(PREFIX)/lib/husk'
	install -m 644 target/dist/vmlinux '$(DESTDIR)$(PREFIX)/lib/husk/vmlinux'

check: ## formatting, lints, dependency rules
	@tools/check

help: ## this list
	@sed -nE 's/^([a-z]+): ## (.*)/make \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done
