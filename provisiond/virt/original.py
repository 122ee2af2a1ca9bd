"""What a domain's XML says of the one guest that it was taken from, and of no other. Pure.

That is what libvirt has made for it (its id, UUIDs, MACs, aliases, labels, terminals, sockets,
ports), some of it while it ran. Where it is left out libvirt makes it anew.
"""

import xml.etree.ElementTree as ET

from provisiond.virt.disk_xml import remove


def forget_original(domain: ET.Element) -> None:
    """Take out of a `<domain>` what the guest that it describes has for itself."""
    domain.attrib.pop("id", None)
    remove(domain, "uuid")
    for genid in domain.findall("genid"):
        genid.text = None  # libvirt makes one
    for system in domain.findall("sysinfo/system"):
        for entry in system.findall("entry[@name='uuid']"):
            system.remove(entry)
    for label in domain.findall("seclabel"):
        if label.get("type", "dynamic") == "dynamic":
            domain.remove(label)
    for nvram in domain.findall("os/nvram"):
        _forget_variables(nvram)
    for device in domain.findall("devices/*"):
        _forget_alias(device)
        if (forget := _OF_DEVICES.get(device.tag)) is not None:
            forget(device)


def _forget_variables(nvram: ET.Element) -> None:
    """The firmware's variables: from the template file that stays named, into a file of its own."""
    nvram.text = None
    nvram.attrib.pop("type", None)
    for child in list(nvram):
        nvram.remove(child)


def _forget_alias(device: ET.Element) -> None:
    for alias in device.findall("alias"):
        if not alias.get("name", "").startswith("ua-"):  # those are the operator's
            device.remove(alias)


def _forget_endpoint(device: ET.Element) -> None:
    """Terminals, and the sockets of channels: libvirt chooses both anew."""
    device.attrib.pop("tty", None)
    target, source = device.find("target"), device.find("source")
    if target is not None:
        target.attrib.pop("state", None)
    if source is None:
        return
    if device.get("type") == "pty":
        device.remove(source)
    elif device.tag == "channel" and source.get("mode") == "bind":
        source.attrib.pop("path", None)


def _forget_port(graphics: ET.Element) -> None:
    if graphics.get("autoport") == "yes":
        for name in ("port", "tlsPort", "websocket"):
            graphics.attrib.pop(name, None)
    for listen in graphics.findall("listen[@type='socket']"):
        listen.attrib.pop("socket", None)
        graphics.attrib.pop("socket", None)


def _forget_link(interface: ET.Element) -> None:
    """The MAC, the host's device, and the port that libvirt or Open vSwitch gave to it."""
    remove(interface, "mac")
    for target in interface.findall("target"):
        if target.get("managed") != "no":
            interface.remove(target)
    for parameters in interface.findall("virtualport/parameters"):
        parameters.attrib.pop("interfaceid", None)
    for source in interface.findall("source"):
        source.attrib.pop("portid", None)
        if interface.get("type") == "network":
            source.attrib.pop("bridge", None)


_OF_DEVICES = {
    "serial": _forget_endpoint,
    "parallel": _forget_endpoint,
    "console": _forget_endpoint,
    "channel": _forget_endpoint,
    "graphics": _forget_port,
    "interface": _forget_link,
}
