# Two commands do everything on a fresh Debian or Ubuntu with Rust, as root or with sudo:
#   make lab    installs what is missing, builds, and makes a real failover on this machine
#   make test   installs what is missing and passes every test
# While you work, `make quick`.
# A third one puts the program onto a host: make install

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)

.PHONY: lab test quick partitions versions upgrade install lint bench fuzz sim packages doubles

lab: packages
	$(CARGO) build --locked
	$(TARGET_DIR)/debug/failover lab run $(LAB)

# Only what simulates is worth optimising: the rest is built in a quarter of that time.
test: packages doubles
	INSTA_UPDATE=no $(CARGO) test --profile dev --locked --lib --bins --test it --test fuzz --test memory --test lab
	INSTA_UPDATE=no $(CARGO) test --locked --test model --test sim

# The inner loop, within a minute: the engine's tables, executor, recovery, command line, documents.
quick:
	INSTA_UPDATE=no $(CARGO) test --profile dev --locked --lib --test it

# The program, its systemd units and the shipped policies. Makes no user and enables nothing.
# DESTDIR=FOLDER puts the same tree below a folder, for a package or an archive.
PREFIX ?= /usr
UNITS := $(notdir $(wildcard deploy/systemd/*.service))
UNIT_DIR := /usr/lib/systemd/system
POLICY_DIR := /usr/share/failover/policies
install:
	$(CARGO) build --locked --release --bin failover
	install -D -m 755 $(TARGET_DIR)/release/failover $(DESTDIR)$(PREFIX)/bin/failover
	install -D -m 644 -t $(DESTDIR)$(UNIT_DIR) $(addprefix deploy/systemd/,$(UNITS))
	sed -i 's|^ExecStart=/usr/bin/|ExecStart=$(PREFIX)/bin/|' $(addprefix $(DESTDIR)$(UNIT_DIR)/,$(UNITS))
	install -D -m 644 -t $(DESTDIR)$(POLICY_DIR) policies/*.toml

# Every row, three times, into docs/partitions.md: about an hour.
partitions: packages
	PARTITION_ROWS=all PARTITION_REPEAT=3 UPDATE_DOCS=1 $(CARGO) test --locked --test lab partitions -- --nocapture

# The lab on PostgreSQL 14, 16, 17 and 18, into docs/versions.md: about half an hour.
versions: packages
	./tests/install-versions
	POSTGRES_VERSIONS=$(TARGET_DIR)/postgres $(CARGO) test --locked --test versions -- --nocapture

# A rolling upgrade from the program of a commit, in both orders, on a running lab: some minutes to
# build that one. make upgrade FROM=v0.1.0
upgrade: packages
	./tests/build-old $(FROM)
	FAILOVER_OLD=$(abspath $(TARGET_DIR))/old/debug/failover \
	    $(CARGO) test --locked --test upgrade -- --nocapture

# What every change must keep.
lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

# Medians and ratios of one run; optimised, so the first build takes some minutes. Then the rows of
# docs/partitions.md whose speed is watched, five times each: some ten minutes.
bench: packages
	$(CARGO) bench --locked
	PARTITION_ROWS=goals PARTITION_REPEAT=5 $(CARGO) test --locked --test lab partitions -- --nocapture

# Bad input from everywhere, for as long as wanted: make fuzz FUZZ_SECONDS=600
FUZZ_SECONDS ?= 60
fuzz:
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --locked --test fuzz -- --nocapture

# Thousands of seeds of ten simulated minutes, on all cores: make sim SEEDS=20000 FROM=1000000
SEEDS ?= 2000
FROM ?= 1
SIM ?=
sim:
	$(CARGO) build --locked --profile sim --bin failover
	$(TARGET_DIR)/sim/failover simulate --seeds $(SEEDS) --from $(FROM) --minutes 10 $(SIM)

packages:
	./tests/install-packages

doubles:
	./tests/install-doubles
