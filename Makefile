# make test, test-xen, test-guests, faults, fuzz, soak, bench and demo set up what they need on a fresh
# Debian 12 or later (setup-debian); the second time they find it done. ARGS goes to pytest:
# make test ARGS='-x tests/unit'

.PHONY: help test test-xen test-guests test-dib test-libguestfs faults fuzz soak bench demo setup lock clean
.DEFAULT_GOAL := help

help:
	@echo 'make test        run every test, real guests included (ARGS=... goes to pytest)'
	@echo 'make test-xen    boot real Xen under QEMU, install provisiond in its dom0 and test it there'
	@echo 'make test-guests provision whole Debian systems: each init system, each owner of the network'
	@echo 'make test-dib    build an image by diskimage-builder and verify it; ask kiwi and virt-install'
	@echo 'make test-libguestfs  bake an image whose root is XFS, and take it apart'
	@echo 'make faults      kill it, cut its power and fill its disks at every call that changes the world'
	@echo 'make fuzz        throw hostile input at the parsers and the API, and look (ARGS=--help)'
	@echo 'make soak        work without a pause for 5 minutes: nothing grows; then floods by guests'
	@echo 'make bench       measure its overhead, its growth and its peers in one run (ARGS=--help)'
	@echo 'make demo        provision a real guest on this machine and show each step'
	@echo 'make lock        resolve constraints.txt again from pyproject.toml'
	@echo 'make clean       remove .venv, the caches and the results in this tree'

ifeq ($(shell id -u),0)

setup:
	@./setup-debian

test: setup
	.venv/bin/pytest $(ARGS)

test-xen: setup
	.venv/bin/python -m tests.xen $(ARGS)

test-guests: setup
	.venv/bin/pytest tests/systems $(ARGS)

# sudo, debootstrap, rsync: diskimage-builder calls them. The rest: how an ISO is installed.
test-dib: setup
	@./setup-debian --packages sudo debootstrap rsync virtinst libvirt-clients
	.venv/bin/pytest tests/builders $(ARGS)

# What it needs beyond make test's packages: libguestfs, XFS in its guest, depmod.
test-libguestfs: setup
	@./setup-debian --packages guestfish libguestfs-xfs kmod
	.venv/bin/pytest tests/images/slow_guestfs.py $(ARGS)

faults: setup
	.venv/bin/python -m tests.faults $(ARGS)

fuzz: setup
	.venv/bin/python -m tests.fuzz $(ARGS)

soak: setup
	.venv/bin/python -m tests.soak $(ARGS)

# What it needs beyond make test's packages: the peers, and what draws the figures.
bench: setup
	@./setup-debian --packages cloud-image-utils genisoimage libvirt-clients python3-matplotlib \
	    virtinst xorriso
	.venv/bin/python -m tests.bench $(ARGS)

demo: setup
	.venv/bin/python -m tests.demo $(ARGS)

# In a venv of its own: the resolver is no part of what it resolves.
LOCK_VENV = .venv/lock
lock: setup
	/usr/bin/python3 -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip --quiet install pip-tools==7.6.2
	$(LOCK_VENV)/bin/pip-compile \
	    --upgrade \
	    --generate-hashes \
	    --all-extras \
	    --all-build-deps \
	    --allow-unsafe \
	    --strip-extras \
	    --no-emit-index-url \
	    --no-emit-find-links \
	    --no-emit-trusted-host \
	    --no-header \
	    --quiet \
	    --output-file $(LOCK_VENV)/constraints.txt \
	    pyproject.toml
	{ sed '/^[^#]/,$$d' constraints.txt; cat $(LOCK_VENV)/constraints.txt; } >constraints.txt.part
	mv constraints.txt.part constraints.txt

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

else

# Packages are installed, namespaces and guests started: all of that is root's, and so is .venv.
setup test test-xen test-guests test-dib test-libguestfs faults fuzz soak bench demo lock clean:
	sudo --preserve-env=CI,LAB_CACHE,http_proxy,https_proxy,no_proxy $(MAKE) $@ ARGS='$(ARGS)'

endif
