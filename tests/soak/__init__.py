"""`make soak`: floods by hostile guests, and whether anything grows while provisiond works.

Read it in this order:

latency.py           what guests' neighbours wait, with and without a flood, in turns
neighbours.py        processes that flood, and neighbours whose words are timed
channel_flood.py     virtio channels: their other ends, played by processes
xenstore_flood.py    a real xenstored whose guests write as fast as they can
daemon_flood.py      real guests that flood their channels, and the users of the daemon's API
figures.py           what a running daemon has: descriptors, threads, tasks, memory, files
work.py              everything that a daemon is asked for, again and again
leaks.py             work and rest in turns, the figures at each rest, and whether they are level
__main__.py          the tables
"""
