"""The plan: names are computed from the job id, and only from one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.plan import iso_folder, plan_job

RUN = Path("/run/provisiond")


def test_the_same_job_has_the_same_plan() -> None:
    plan = plan_job("0f" * 16, runtime_dir=RUN)
    assert plan == plan_job("0f" * 16, runtime_dir=RUN)
    assert plan.iso == RUN / "iso" / ("0f" * 16 + ".iso")
    assert plan.nonce == "0f" * 16


@given(st.uuids(), st.uuids())
def test_two_jobs_share_no_name(one: object, other: object) -> None:
    plans = [plan_job(str(id_).replace("-", ""), runtime_dir=RUN) for id_ in {one, other}]
    names = {name for plan in plans for name in (plan.nonce, str(plan.iso), str(plan.iso_part))}
    assert len(names) == 3 * len(plans)
    assert all(plan.iso.parent == plan.iso_part.parent == iso_folder(RUN) for plan in plans)


@pytest.mark.parametrize(
    "job_id",
    [
        "",
        "0f",
        "0F" * 16,
        "0f" * 16 + "\n",
        "0f" * 17,
        "../" + "0" * 29,
        "0f" * 15 + "0/",
        "٣" * 32,
    ],
)
def test_what_is_no_job_id_has_no_plan(job_id: str) -> None:
    with pytest.raises(ValueError, match="is no job id"):
        plan_job(job_id, runtime_dir=RUN)
