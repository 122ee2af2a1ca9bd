"""The judgement is held against a real kernel's words; whether KVM works is the machine's own."""

import asyncio
from pathlib import Path

from provisiond.process import output_of
from provisiond.virt.kvm import DEVICE, Kvm, KvmState, boot_argv, judge, probe_kvm
from tests.lab.initramfs import GuestFiles


async def test_the_words_of_a_kernel_that_boots_are_known(guest_files: GuestFiles) -> None:
    said = b""
    async with (
        asyncio.timeout(60),
        output_of(boot_argv(guest_files.kernel, accelerator="tcg")) as stream,
    ):
        while not judge(said) and (chunk := await stream.read(65536)):
            said += chunk
    assert judge(said) == KvmState(Kvm.WORKS, "a kernel booted under KVM")


async def test_a_file_that_is_no_kernel_never_counts_as_working(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"no kernel" * 1000)
    state = await probe_kvm(kernel, within=5)
    assert not state.works
    assert state.kvm is (Kvm.BROKEN if DEVICE.exists() else Kvm.ABSENT)
    assert state.reason


def test_a_stopped_qemu_is_broken_with_its_last_words() -> None:
    state = judge(b"booting\nKVM internal error. Suberror: 1\nemulation failure\n")
    assert state == KvmState(Kvm.BROKEN, "QEMU stopped; the last words were: emulation failure")
    assert judge(b"[    0.1] Linux version 6.1\n") is None
