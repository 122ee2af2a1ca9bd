"""`make fuzz`: atheris on every parser of hostile bytes, schemathesis on the API.

    python -m tests.fuzz [--seconds N] [--examples N] [TARGET ...]

Exit status 1 where anything was found; the input is shown, and stays in a folder that is named.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from tests.fuzz.api import CAMPAIGNS, api_host, leftovers, run, settle
from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS

API = "api"


def main() -> int:
    """0 where nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, API, []], metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="for each parser")
    parser.add_argument("--examples", type=int, default=50, help="for each operation of the API")
    parser.add_argument("--seed", type=int, default=1, help="of the API's requests")
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="provisiond-fuzz-"))
    found = 0
    for name in wanted.targets or [*TARGETS, API]:
        if name == API:
            found += not asyncio.run(_fuzz_api(examples=wanted.examples, seed=wanted.seed))
            continue
        result = fuzz(name, folder, f"-max_total_time={wanted.seconds}")
        print(result, flush=True)
        found += bool(result.problem)
    if found:
        print(f"{found} found; the inputs are in {folder}")
        return 1
    shutil.rmtree(folder)
    print("nothing was found")
    return 0


async def _fuzz_api(*, examples: int, seed: int) -> bool:
    async with api_host() as host:
        good = True
        for campaign in CAMPAIGNS:
            status, said = await run(host, campaign, examples=examples, seed=seed)
            print(f"api, {campaign.name}: {'ok' if status == 0 else said}", flush=True)
            good = good and status == 0
        for (kind, end), count in sorted((await settle(host)).items()):
            print(f"api: {count} × {kind} {end}")
            good = good and "internal_error" not in end
        left = await leftovers(host)
        print("api:", "; ".join(left) or "nothing is left")
        return good and not left


if __name__ == "__main__":
    sys.exit(main())
