"""A name is enough to know a guest; what is left out of it is left out of its XML."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.lab.domain import (
    Guest,
    domain_xml,
    kernel_words,
    log_path,
    shell_path,
    template_log,
    template_xml,
)
from tests.lab.initramfs import GuestFiles

FILES = GuestFiles(kernel=Path("/boot/vmlinuz"), initramfs=Path("/boot/initramfs"))


def devices(guest: Guest) -> ET.Element:
    found = ET.fromstring(domain_xml(guest, files=FILES, folder=Path("/lab"))).find("devices")
    assert found is not None
    return found


def test_the_same_name_is_the_same_guest_and_another_name_is_another() -> None:
    assert (Guest("web1").uuid, Guest("web1").mac) == (Guest("web1").uuid, Guest("web1").mac)
    many = [Guest(f"web{number}") for number in range(500)]
    assert len({guest.uuid for guest in many}) == 500
    assert len({guest.mac for guest in many}) == 500


def test_a_guest_has_all_that_provisioning_needs() -> None:
    found = devices(Guest("web1"))
    assert found.find("controller[@model='virtio-scsi']") is not None
    assert found.find("interface/model[@type='virtio']") is not None
    assert found.find("channel/target[@name='org.provisiond.0']") is not None


def test_what_is_left_out_is_not_there() -> None:
    found = devices(Guest("web1", nic=False, scsi_controller=False, channel=False))
    assert found.find("controller[@model='virtio-scsi']") is None
    assert found.find("interface") is None
    assert found.find("channel") is None


def test_the_kernel_is_told_what_the_test_wants() -> None:
    assert kernel_words() == ()
    words = kernel_words(silent=True, delay=3, held=True, broken_step="dns")
    assert words == ("lab.silent", "lab.delay=3", "lab.hold", "lab.break=dns")
    domain = ET.fromstring(
        domain_xml(Guest("web1", kernel_words=words), files=FILES, folder=Path("/lab"))
    )
    assert domain.findtext("os/cmdline", "").endswith(f" {' '.join(words)}")


def test_a_name_that_xml_does_not_like_stays_one_name() -> None:
    name = "a<b>&'\""
    xml = domain_xml(Guest(name), files=FILES, folder=Path("/lab"))
    assert ET.fromstring(xml).findtext("name") == name


def test_a_template_has_the_devices_of_its_model_and_nothing_that_is_one_guests() -> None:
    model = Guest("web1", channel=False, memory_mib=80)
    xml = template_xml(model, files=FILES, folder=Path("/lab"))
    domain = ET.fromstring(xml)
    assert model.uuid not in xml
    assert model.mac not in xml
    assert domain.findtext("memory") == "80"
    assert domain.find("devices/interface") is not None
    assert domain.find("devices/channel") is None
    with pytest.raises(ValueError, match="no serial port 1"):
        shell_path(xml)
    assert log_path(xml) == template_log(Path("/lab"))


def test_the_bus_of_a_templates_root_disk_is_its_targets() -> None:
    def root_disk(target: str | None) -> ET.Element | None:
        xml = template_xml(Guest("any"), files=FILES, folder=Path("/lab"), target=target)
        return ET.fromstring(xml).find("devices/disk/target")

    vda, sda = root_disk("vda"), root_disk("sda")
    assert vda is not None
    assert sda is not None
    assert (vda.get("bus"), sda.get("bus")) == ("virtio", "scsi")
    assert root_disk(None) is None


def test_a_shell_is_found_in_the_live_xml_of_a_template_and_of_a_guest() -> None:
    own = domain_xml(Guest("web1"), files=FILES, folder=Path("/lab"))
    assert shell_path(own) == Path("/lab/web1.shell")
    live = ET.fromstring(template_xml(Guest("web1"), files=FILES, folder=Path("/lab")))
    terminal = live.find("devices/serial[@type='pty']")
    assert terminal is not None
    ET.SubElement(terminal, "source", path="/dev/pts/7")  # as libvirt shows it
    assert shell_path(ET.tostring(live, encoding="unicode")) == Path("/dev/pts/7")
