"""Starts, shows and ends tiny guests: `python -m tests.lab ROOT start --count 3 --prefix web`."""

import argparse
import json
from pathlib import Path

from tests.lab.domain import Guest, console_log, kernel_words, shell_socket
from tests.lab.embed import (
    attach_cdrom,
    destroy_all,
    detach_cdrom,
    lab_folder,
    live_xml,
    start_domain,
    start_guests,
    uri,
)
from tests.lab.initramfs import GuestFiles, guest_files


def main() -> None:
    """Does the one thing that the command line asks for."""
    wanted = _parser().parse_args()
    if wanted.action == "start":
        _start(wanted)
    elif wanted.action == "define":
        start_domain(wanted.root, wanted.file.read_text())
    elif wanted.action == "xml":
        print(live_xml(wanted.root, wanted.name))
    elif wanted.action == "attach":
        attach_cdrom(wanted.root, wanted.name, iso=wanted.iso, target=wanted.target)
    elif wanted.action == "detach":
        detach_cdrom(wanted.root, wanted.name, iso=wanted.iso, target=wanted.target)
    else:
        destroy_all(wanted.root)


def _start(wanted: argparse.Namespace) -> None:
    """Starts guests and prints one JSON object a line for each of them."""
    words = kernel_words(silent=wanted.silent, delay=wanted.delay, broken_step=wanted.broken_step)
    guests = [
        Guest(
            name=f"{wanted.prefix}{number}",
            kernel_words=words,
            nic=wanted.nic,
            scsi_controller=wanted.scsi,
            channel=wanted.channel,
            accelerator=wanted.accelerator,
        )
        for number in range(wanted.first, wanted.first + wanted.count)
    ]
    if wanted.kernel and wanted.initramfs:
        files = GuestFiles(kernel=wanted.kernel, initramfs=wanted.initramfs)
    else:
        files = guest_files()
    start_guests(wanted.root, guests, files=files)
    folder = lab_folder(wanted.root)
    for guest in guests:
        facts = {
            "name": guest.name,
            "uuid": guest.uuid,
            "mac": guest.mac,
            "uri": uri(wanted.root),
            "log": str(console_log(folder, guest.name)),
            "shell": str(shell_socket(folder, guest.name)),
        }
        print(json.dumps(facts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("root", type=Path, help="a short path, best on a tmpfs")
    actions = parser.add_subparsers(dest="action", required=True)
    _add_start(actions.add_parser("start", help="start guests; they outlive this program"))
    define = actions.add_parser("define", help="start a domain from its XML")
    define.add_argument("file", type=Path)
    show = actions.add_parser("xml", help="print the live XML of a running guest")
    show.add_argument("name")
    for action in ("attach", "detach"):
        disk = actions.add_parser(action, help=f"{action} a CD-ROM of a running guest")
        disk.add_argument("name")
        disk.add_argument("iso", type=Path)
        disk.add_argument("--target", default="sdb")
    actions.add_parser("destroy", help="end all guests and remove ROOT, also after a crash")
    return parser


def _add_start(start: argparse.ArgumentParser) -> None:
    start.add_argument("--count", type=int, default=1)
    start.add_argument("--first", type=int, default=1, help="the number of the first name")
    start.add_argument("--prefix", default="web", help="names are PREFIX1, PREFIX2, ...")
    start.add_argument("--break", dest="broken_step", metavar="STEP", help="see guest-init")
    start.add_argument("--silent", action="store_true", help="the guest script never starts")
    start.add_argument("--delay", type=int, default=0, help="seconds; it starts late")
    start.add_argument("--no-nic", dest="nic", action="store_false")
    start.add_argument("--no-scsi", dest="scsi", action="store_false")
    start.add_argument("--no-channel", dest="channel", action="store_false")
    start.add_argument("--accelerator", choices=("qemu", "kvm"), default="qemu")
    start.add_argument("--kernel", type=Path, help="with --initramfs: other files than the lab's")
    start.add_argument("--initramfs", type=Path)


if __name__ == "__main__":
    main()
