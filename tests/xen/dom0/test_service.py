"""README.md's commands have made a service that works on Xen, and that refuses what is wrong."""

from provisiond.doctor import in_dom0
from tests.xen.dom0 import host
from tests.xen.dom0.guests import Guests, wanted
from tests.xen.dom0.service import Service


async def test_the_unit_runs_and_has_found_out_that_this_is_xen(service: Service) -> None:
    assert in_dom0()
    await service.answered()
    assert host.run("systemctl", "show", "--property=ActiveState", "provisiond") == (
        "ActiveState=active\n"
    )
    health = (await service.get("/healthz")).json()
    assert (health["hypervisor"], health["hypervisor_connected"]) == ("xen:///system", True)


async def test_the_doctor_finds_nothing_wrong() -> None:
    said = host.run("provisionctl", "doctor")
    assert "xen: provisiond is connected to xenstore" in " ".join(said.split())


async def test_a_wrong_request_is_refused_and_names_the_field(
    service: Service, guests: Guests
) -> None:
    guest = guests.start("wrong1", silent=True)
    bad = await service.post(wanted(guest, hostname="no_host_name"))
    assert bad.status_code == 422
    assert [field["field"] for field in bad.json()["fields"]] == ["config.hostname"]
    target = await service.post(wanted(guest, target="sda"))
    assert (target.status_code, target.json()["code"]) == (409, "no_free_target")
    host.destroy(guest)
    gone = await service.post(wanted(guest))
    assert (gone.status_code, gone.json()["code"]) == (404, "domain_not_found")
