"""Debian's own C xenstored without a hypervisor, and guests of it.

hypervisor.c   stands where Xen's libraries stand: domains, rings, the kernel of every guest
program.py     the unmodified xenstored, and hypervisor.c compiled for it
wire.py        a small blocking client, for dom0's side of a test and for a guest's
daemon.py      start it, kill it, stop it; introduce a domain as libxl does; let it die
xenbus.py      /dev/xen/xenbus: the device of a guest's kernel, by FUSE
fixtures.py    what a test asks for
"""
