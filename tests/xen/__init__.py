"""The Xen laboratory: real Xen and a Debian dom0 under QEMU's TCG, with provisiond inside.

Read in this order: image (what dom0 boots from), machine (how it boots, what goes in and comes
out), __main__ (`make test-xen`); then dom0/, which runs inside: install and suite.
"""
