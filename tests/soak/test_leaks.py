"""What `make soak` does about leaks, small: counts at rest are the same before and after the work.

Memory and threads take longer to settle than a test may; `make soak` looks at them.
"""

from tests.soak.figures import Figures, growth, problems
from tests.soak.leaks import KEPT_JOBS, site, soak

LEVEL = ("files", "children", "tasks", "images", "isos")


def figures(seconds: float, **changed: float) -> Figures:
    usual: dict[str, float] = dict.fromkeys(Figures.__dataclass_fields__, 10)
    return Figures(**(usual | {"seconds": seconds} | changed))  # type: ignore[arg-type]


async def test_what_is_asked_for_leaves_nothing_in_the_daemon() -> None:
    async with site(with_guests=False) as made:
        seen = [now async for now in soak(made, rounds=3, seconds=3)]
        listed = (await made.daemon.get("/v1/jobs?limit=1000")).json()["jobs"]
    _, before, after = ({name: getattr(one, name) for name in LEVEL} for one in seen)
    assert all(after[name] <= before[name] for name in LEVEL), (before, after)
    assert all(made.done[name] >= 3 for name in ("overlays", "bases", "streams", "cut off", "tls"))
    assert len(listed) <= KEPT_JOBS + 100


def test_a_figure_that_grows_is_found_and_one_that_moves_is_not() -> None:
    level = [figures(n, files=20 + n % 2, memory=80 + n % 3) for n in range(10)]
    assert problems(level) == []
    leaky = [figures(n, files=20 + n, memory=80 + 3 * n) for n in range(10)]
    assert growth(leaky)["memory"] == 27
    found = problems(leaky)
    assert len(found) == 2, found
    assert found[0].startswith("files has grown by 9.0")
