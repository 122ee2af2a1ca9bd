"""A tiny real guest: Debian's kernel, busybox, the real guest script; run by libvirt's QEMU driver.

Read in this order: packages (what the guest is made of), initramfs, disk (the same root as a golden
image), domain, embed (libvirt inside this process), console (a root shell in the guest).
"""
