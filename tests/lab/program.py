"""The lab from another process: `python -m tests.lab` starts the guests, ends, and leaves the root
free for the program under test to open."""

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from tests.lab.domain import log_path, shell_path
from tests.lab.embed import destroy_all, kept_xml, uri
from tests.lab.initramfs import PROJECT, GuestFiles


@dataclass(frozen=True, slots=True)
class Running:
    """A guest that was started: where to find it and how to speak to it."""

    name: str
    uuid: str
    mac: str
    uri: str
    log: Path
    shell: Path


@dataclass(frozen=True, slots=True)
class Lab:
    """The guests under one root directory."""

    root: Path
    files: GuestFiles

    @property
    def uri(self) -> str:
        """The libvirt URI that the program under test is given."""
        return uri(self.root)

    def start(self, *options: str, count: int = 1, prefix: str = "web") -> list[Running]:
        """Starts guests; `options` are those of `python -m tests.lab ROOT start --help`."""
        wanted = ("--count", str(count), "--prefix", prefix, *options)
        boot = ("--kernel", str(self.files.kernel), "--initramfs", str(self.files.initramfs))
        return [_running(line) for line in self._run("start", *boot, *wanted).splitlines()]

    def define(self, xml: str) -> Running:
        """Starts a domain from XML of the caller's own."""
        with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
            file.write(xml)
            file.flush()
            self._run("define", file.name)
        return self.running(ET.fromstring(xml).findtext("name", ""))

    def running(self, name: str) -> Running:
        """A guest that runs, whoever has made it, also while another process has the root open."""
        xml = kept_xml(self.root, name)
        domain = ET.fromstring(xml)
        mac = domain.find("devices/interface/mac")
        return Running(
            name=name,
            uuid=domain.findtext("uuid", ""),
            mac="" if mac is None else mac.attrib["address"],
            uri=self.uri,
            log=log_path(xml),
            shell=shell_path(xml),
        )

    def xml(self, name: str) -> str:
        """The live XML; only while no other process has the root open."""
        return self._run("xml", name)

    def attach(self, name: str, iso: Path, *, target: str = "sdb") -> None:
        """Hot-attaches a disk as a stranger; only while no other process has the root open."""
        self._run("attach", name, str(iso), "--target", target)

    def detach(self, name: str, iso: Path, *, target: str = "sdb") -> None:
        """Detaches what is at `target`; only while no other process has the root open."""
        self._run("detach", name, str(iso), "--target", target)

    def destroy(self) -> None:
        """Ends all guests and removes the root, also while another process has it open."""
        destroy_all(self.root)

    def _run(self, action: str, *words: str) -> str:
        argv = [sys.executable, "-m", "tests.lab", str(self.root), action, *words]
        ended = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)} ended with {ended.returncode}:\n{ended.stderr}")
        return ended.stdout


def _running(line: str) -> Running:
    facts = json.loads(line)
    return Running(**{**facts, "log": Path(facts["log"]), "shell": Path(facts["shell"])})
