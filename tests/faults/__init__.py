"""`make faults`: provisiond is stopped at every call by which it changes the world.

Nothing is built into the program: a small library that is preloaded sees the calls by which SQLite,
Python and libvirt write, link, rename, remove, start programs and speak to QEMU, and ends the
process or holds the call just before or just after one of them. Read it in this order:

breakpoint.c          the library
breakpoint.py         it is built, told where to stop, and says which calls there were
hypervisor.py         where the guests run: libvirt inside the daemon, or libvirtd beside it
volumes.py            file systems whose power is cut, or which are filled to the last block
world.py              what is on the host: files, ISOs, domains, QEMU processes, jobs
scenario.py           something that is asked for, and when the world is right afterwards
images.py, guests.py  the scenarios
campaign.py           a scenario at every point: recorded once, then stopped, and looked at
kill.py, power_cut.py, disk_full.py    what happens at a point
__main__.py           the table
"""
