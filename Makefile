# make run     start the MTA on an embedded default configuration (PORT=2525, DIRECTORY=var)
# make demo    two nodes lose their owner under load; see what comes of it (no root)
# make test    the trial suite: no root, no network
# make check   static checks: style, types, packaging, examples, documents
# make rig     real processes and real peers in network namespaces (root; installs nothing)
# make campaign  faults from a seed upon two nodes under load (FAULTS=500 SEED=1; root)
# make simulate  histories of two nodes from seeds (SEEDS=1000), or one of them with its trace (SEED=7)
# make fuzz    what nobody would say, to every parser (N=100000 SEED=1), or to one (TARGET=proxy)
# make bench   relay rates beside Postfix (root)
# make bench-tls  handshakes and mail under TLS beside Postfix (root; BENCH="-r 5" goes to each of these)
# make bench-curves  throughput over sessions, latency over load, as tables and SVG, beside Postfix (root)
# make bench-overload  twice what each can do, in front and behind (root)
# make bench-queue  a long queue; a backlog with dead and slow destinations (QUEUE="-m 1000000" BACKLOG=; root)
# make bench-big  messages of 100 MiB, several at once, beside Postfix (root)

PYTHON    ?= python3
PORT      ?= 2525
DIRECTORY ?= var
SCENARIOS ?=
BENCH     ?=
QUEUE     ?=
BACKLOG   ?=
FAULTS    ?= 500
CLASSES   ?=
ONLY      ?=
MODE      ?=
N         ?= 100000
TARGET    ?=
SEED      ?= 1
SEEDS     ?= 1000

BIN     := .venv/bin
RUNTIME := .venv/.runtime-installed
DEV     := .venv/.dev-installed
PIP     := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip --quiet

.PHONY: run demo test check rig campaign fuzz bench bench-tls bench-curves \
        bench-overload bench-queue bench-big clean
.DEFAULT_GOAL := run

# The stamps are newer than pyproject.toml when nothing has to be installed: a second `make run`
# asks no network.
$(RUNTIME): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "mta: needs Python 3.11 or newer; choose one with: make run PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "mta: Python cannot make a virtual environment here; install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "mta: making .venv (once)"; $(PYTHON) -m venv .venv; }
	@echo "mta: installing into .venv (once)"
	@$(PIP) install --editable .
	@touch $@

$(DEV): $(RUNTIME)
	@echo "mta: installing the development tools into .venv (once)"
	@$(PIP) install --editable '.[dev]'
	@touch $@

run: $(RUNTIME)
	@exec $(BIN)/twistd -n --pidfile= mta --port '$(PORT)' --directory '$(DIRECTORY)'

demo: $(RUNTIME)
	@$(BIN)/python -m tests.rig.demo

test: $(DEV)
	@mkdir -p .rig && rm -f .rig/audit
	@MTA_AUDIT_SOCKETS=$(CURDIR)/.rig/audit $(BIN)/python -m twisted.trial tests
	@test ! -s .rig/audit || { sed 's/^/FAIL audit-net: /' .rig/audit; exit 1; }

check: $(DEV)
	@$(BIN)/python -m tests.check

rig: $(RUNTIME)
	@$(BIN)/python -m tests.rig.run $(SCENARIOS)

campaign: $(RUNTIME)
	@$(BIN)/python -m tests.rig.campaign --faults '$(FAULTS)' --seed '$(SEED)' \
	  $(if $(CLASSES),--classes '$(CLASSES)') $(if $(ONLY),--only '$(ONLY)') $(if $(MODE),--mode '$(MODE)')

simulate: $(RUNTIME)
	@$(BIN)/python -m tests.simulation $(if $(filter command line,$(origin SEED)),--seed $(SEED),--count $(SEEDS))

fuzz: $(RUNTIME)
	@$(BIN)/python -m mta.testing.fuzz.blocks --count '$(N)' --seed '$(SEED)' \
	  $(if $(TARGET),--target '$(TARGET)')

bench: $(RUNTIME)
	@$(BIN)/python benchmarks/relay.py $(BENCH)

bench-tls: $(RUNTIME)
	@$(BIN)/python benchmarks/tls.py $(BENCH)

bench-curves: $(RUNTIME)
	@$(BIN)/python benchmarks/curves.py $(BENCH)

bench-overload: $(RUNTIME)
	@$(BIN)/python benchmarks/overload.py $(BENCH)

bench-queue: $(RUNTIME)
	@$(BIN)/python benchmarks/long_queue.py $(QUEUE)
	@$(BIN)/python benchmarks/backlog.py $(BACKLOG)

bench-big: $(RUNTIME)
	@$(BIN)/python benchmarks/big.py $(BENCH)

clean:
	rm -rf .venv .rig build dist _trial_temp* .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
