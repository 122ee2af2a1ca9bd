"""provisiond as it is, over a hypervisor that is measured or simulated.

`python -m tests.bench.daemon PROVISIOND serve --config FILE`; $BENCH_HYPERVISOR says which.
"""

import asyncio
import gc
import os
import sys
from pathlib import Path

KIND = "BENCH_HYPERVISOR"


def main() -> None:
    """What provisiond's own main does, garbage included."""
    gc.disable()
    from provisiond.daemon import serve, set_up_logging  # noqa: PLC0415 - as provisiond's main
    from provisiond.settings import read_settings  # noqa: PLC0415 - as provisiond's main
    from tests.bench.simulated import SimulatedHypervisor  # noqa: PLC0415 - as provisiond's main
    from tests.bench.timed import TimedHypervisor  # noqa: PLC0415 - as provisiond's main

    kinds = {"timed": TimedHypervisor, "simulated": SimulatedHypervisor}
    settings = read_settings(Path(sys.argv[-1]))
    set_up_logging(settings.log_level)
    asyncio.run(serve(settings, hypervisor=kinds[os.environ[KIND]]))


if __name__ == "__main__":
    main()
