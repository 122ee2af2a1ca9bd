"""Templates that no guest is made of, as the API refuses them: before anything is made."""

from pathlib import Path

import pytest

from tests.daemon.images import files_of, import_of, raw_image, run_job
from tests.daemon.program import Daemon, request

DOCTYPE = "<!DOCTYPE domain [<!ENTITY f SYSTEM 'file:///etc/passwd'>]>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (f"{DOCTYPE}<domain type='qemu'><name>&f;</name></domain>", "has a document type"),
        ("<domain type='qemu'>", "is not one XML document: no element found"),
        (f"<domain>{'<a>' * 101}{'</a>' * 101}</domain>", "more than 100 elements in one another"),
    ],
)
async def test_a_template_that_is_no_plain_xml_is_refused_with_its_path_and_a_hint(
    daemon: Daemon, tmp_path: Path, template: str, reason: str
) -> None:
    daemon.template_dir.mkdir()
    path = daemon.template_dir / "default.xml"
    path.write_text(template)
    await run_job(daemon, import_of(raw_image(tmp_path / "source.raw")))
    before = files_of(daemon)
    reply = await daemon.post(request("new1") | {"create": {"base": "debian"}})
    assert reply.status_code == 409, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["code"] == "template_unusable"
    assert problem["message"].startswith(f"the template {path} ")
    assert reason in problem["message"]
    assert "virt-install" in problem["hint"]
    assert "root:" not in reply.text
    assert files_of(daemon) == before
