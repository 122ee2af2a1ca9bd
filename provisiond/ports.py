"""The ports: what the story asks of the outside where more than one adapter answers it."""

from typing import Protocol

from provisiond.guest.verdict import Verdict


class GuestSignal(Protocol):
    """The guest's word for one job: over a virtio channel (QEMU) or xenstore (Xen).

    Every call may be made again after a crash. Whoever calls sets the time limit. All calls but
    `cancel` raise GuestLost where the guest cannot speak any more.
    """

    async def listen(self) -> None:
        """Make sure that no word said from now on is lost; before the ISO is attached."""

    async def ready(self) -> str:
        """Wait until the guest can take the ISO; return the sign that it gave, for the history."""

    async def verdict(self) -> Verdict:
        """Wait for the guest's verdict with this job's nonce.

        Raises GuestRestarted where the guest has lost what was attached: attach it, and ask again.
        """

    async def cancel(self) -> Verdict | None:
        """Compare-and-set: end the guest's say. The verdict that stood before, or None: we won.

        No word said after this call has returned counts.
        """

    def log(self) -> tuple[str, ...]:
        """The lines of the guest's log that have come so far, oldest first, bounded."""

    async def end(self) -> None:
        """The job is over: remove whatever was made for it on the host. Never raises."""

    async def close(self) -> None:
        """Let go of whatever `listen` took hold of.

        A job that has not ended goes on after the next start, so nothing that the guest has said is
        removed here.
        """
