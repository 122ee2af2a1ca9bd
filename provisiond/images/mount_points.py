"""What is mounted in a folder: whoever removes the folder would remove what is not in it."""

import os
from pathlib import Path


def mounts_below(folder: Path, mountinfo: str) -> list[Path]:
    """The mount points at or below `folder` in the text of /proc/PID/mountinfo, deepest first."""
    points = []
    for line in mountinfo.splitlines():
        # proc(5): blank, tab, newline and backslash are written as octal escapes.
        text = line.split(" ")[4].encode().decode("unicode_escape").encode("latin-1")
        points.append(Path(os.fsdecode(text)))
    real = folder.resolve()
    below = [point for point in points if point == real or real in point.parents]
    return sorted(below, key=lambda point: len(point.parts), reverse=True)
