# rext4: build, try, test, install. `make help` lists the targets.

PREFIX  ?= /usr/local
DESTDIR ?=
# mount(8) looks for mount.rext4 in /sbin and nowhere else.
HELPERS ?= $(if $(shell test -L /sbin && echo merged),/usr/sbin,/sbin)
CARGO   ?= cargo
TARGET  := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release
TOOLS   := mkfs fsck mount
MSRV    := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
export RUST_LIB_BACKTRACE ?= 0
DATADIR := $(DESTDIR)$(PREFIX)/share/doc/rext4

.PHONY: help all demo test test-doors test-long bench bench-fsck bench-build crash crash-long crash-mutants lint lint-deps lint-tools install uninstall clean setup tools

help:
	@echo 'make all         build mkfs.rext4, fsck.rext4 and mount.rext4 in $(RELEASE)'
	@echo 'make demo        format, mount, fill, compare and check a filesystem, and tell the story'
	@echo 'make test        every test, small sizes (minutes)'
	@echo 'make test-doors  the tests of behaviour through every door, io_uring included (minutes)'
	@echo 'make test-long   the same and more with full sizes (hours; REXT4_MINUTES bounds the endless ones)'
	@echo 'make crash       crash lab: every power cut of short workloads (minutes)'
	@echo 'make crash-long  crash lab, sampled long workloads (hours, resumable; REXT4_MINUTES)'
	@echo 'make crash-mutants  the crash lab tested: every deliberate fault must be caught (minutes)'
	@echo 'make bench       the benchmark against the kernel and fuse2fs (BENCH="--only ... --json ...")'
	@echo 'make bench-fsck  fsck.rext4 and e2fsck side by side, time and memory (2 GiB; FOLDER= keeps the images)'
	@echo 'make bench-build mkfs.rext4 -d, mke2fs -d, mount and tar x, genext2fs (20 GiB; FOLDER= keeps the trees, TREES= chooses)'
	@echo 'make lint        formatting, clippy and documentation'
	@echo 'make install     PREFIX=$(PREFIX) DESTDIR=$(DESTDIR); helpers for mount(8) in $(HELPERS)'
	@echo 'make uninstall   the reverse'

all:
	$(CARGO) build --release --locked -p mkfs -p fsck -p fuse-frontend
	@for t in $(TOOLS); do ln -sf $$t-rext4 $(RELEASE)/$$t.rext4; done

setup:
	@tests/setup.sh

# Test suites that are published as crates.
tools:
	@for t in pjdfstest fsx; do \
	    [ -x $(TARGET)/tools/bin/$$t ] || $(CARGO) install --locked --root $(TARGET)/tools $$t || exit 1; \
	done

demo: setup all
	@$(CARGO) run -q --release --locked -p tests --bin demo

# Debug builds check the lock order and arithmetic, so the tests run those.
test: setup tools
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked --workspace --no-fail-fast

# The tests of behaviour, and the crash lab's programs, through each door (make test uses the default one).
test-doors: setup tools
	$(CARGO) build --locked --workspace --bins
	for t in fuser dev ring; do \
	    REXT4_TRANSPORT=$$t $(CARGO) test --locked -p tests --test filesystem --test crash_programs || exit 1; \
	done

test-long: setup tools all
	$(CARGO) build --release --locked -p tests --bins
	REXT4_SCALE=long $(CARGO) test --release --locked -p tests -p mkfs --no-fail-fast -- --test-threads=1
	REXT4_DAMAGE_IMAGES=10000 $(CARGO) test --release --locked -p fsck --test damage -- --nocapture

bench-fsck: setup
	$(CARGO) build --release --locked -p fsck --bins
	$(CARGO) run --release --locked -p fsck --example side_by_side -- $(RELEASE)/fsck-rext4 "$(FOLDER)" 3

bench-build: setup
	$(CARGO) build --release --locked -p mkfs --bins
	$(CARGO) run --release --locked -p mkfs --example bench_build -- $(RELEASE)/mkfs-rext4 "$(FOLDER)" 3 $(TREES)

bench: setup all
	$(CARGO) run -q --release --locked -p tests --bin bench -- $(BENCH)

crash: setup
	$(CARGO) run -q --release --locked -p tests --bin crashlab -- $(CRASH)

crash-long: setup
	$(CARGO) run -q --release --locked -p tests --bin crashlab -- --long \
	    --minutes $(or $(REXT4_MINUTES),240) --progress $(TARGET)/crashlab.progress $(CRASH)

# Deliberate faults in the filesystem, each of which the lab has to catch.
crash-mutants: setup
	$(CARGO) run -q --release --locked -p tests --features mutants --bin crashlab -- --mutants

# Clippy's incompatible_msrv compares every use of the standard library with rust-version; the check with that
# toolchain itself runs where rustup has it.
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps -p rext4 -p fs-core -p fsck -p blockdev -p jbd2 -p ext4-format

# Apptainer and others run a program called fuse2fs: put $(PREFIX)/libexec/rext4 first in their PATH.
install: all
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/libexec/rext4 $(DESTDIR)$(HELPERS) $(DATADIR)
	@for t in $(TOOLS); do \
	    echo "install $(DESTDIR)$(PREFIX)/sbin/$$t.rext4"; \
	    install -m 755 $(RELEASE)/$$t-rext4 $(DESTDIR)$(PREFIX)/sbin/$$t.rext4 || exit 1; \
	    [ "$(PREFIX)/sbin" = "$(HELPERS)" ] || \
	        ln -sf $(PREFIX)/sbin/$$t.rext4 $(DESTDIR)$(HELPERS)/$$t.rext4 || exit 1; \
	done
	install -m 755 $(RELEASE)/rext4-undo $(DESTDIR)$(PREFIX)/sbin/rext4-undo
	ln -sf $(PREFIX)/sbin/mount.rext4 $(DESTDIR)$(HELPERS)/mount.fuse.rext4
	ln -sf $(PREFIX)/sbin/mount.rext4 $(DESTDIR)$(HELPERS)/umount.fuse.rext4
	@# The name that umount(8) looks for when root unmounts an absolute path; passes on what is not rext4's.
	[ -e $(DESTDIR)$(HELPERS)/umount.fuse ] || [ -L $(DESTDIR)$(HELPERS)/umount.fuse ] || \
	    ln -s $(PREFIX)/sbin/mount.rext4 $(DESTDIR)$(HELPERS)/umount.fuse
	ln -sf ../../sbin/mount.rext4 $(DESTDIR)$(PREFIX)/libexec/rext4/fuse2fs
	install -m 644 LICENSE-MIT LICENSE-APACHE $(DATADIR)

uninstall:
	for t in $(TOOLS); do rm -f $(DESTDIR)$(PREFIX)/sbin/$$t.rext4 $(DESTDIR)$(HELPERS)/$$t.rext4; done
	rm -f $(DESTDIR)$(PREFIX)/sbin/rext4-undo $(DESTDIR)$(HELPERS)/mount.fuse.rext4 $(DESTDIR)$(HELPERS)/umount.fuse.rext4
	[ "$$(readlink $(DESTDIR)$(HELPERS)/umount.fuse)" != $(PREFIX)/sbin/mount.rext4 ] || \
	    rm $(DESTDIR)$(HELPERS)/umount.fuse
	rm -rf $(DESTDIR)$(PREFIX)/libexec/rext4 $(DATADIR)

clean:
	$(CARGO) clean
	rm -rf out
