"""provisiond as it is, over a hypervisor that is measured or simulated.

`python -m tests.bench.daemon PROVISIOND serve --config FILE`; $BENCH_HYPERVISOR says which.
"""

import asyncio
import os
import sys
from pathlib import Path

from provisiond.daemon import serve, set_up_logging
from provisiond.settings import read_settings
from tests.bench.simulated import SimulatedHypervisor
from tests.bench.timed import TimedHypervisor

KIND = "BENCH_HYPERVISOR"
KINDS = {"timed": TimedHypervisor, "simulated": SimulatedHypervisor}


def main() -> None:
    """What provisiond's own main does."""
    settings = read_settings(Path(sys.argv[-1]))
    set_up_logging(settings.log_level)
    asyncio.run(serve(settings, hypervisor=KINDS[os.environ[KIND]]))


if __name__ == "__main__":
    main()
