"""Disk images: real files, read back by programs that are not ours."""
