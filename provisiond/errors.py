"""Every error an operator or a master can meet, one class for each thing they would do differently.

An error says what happened to which object (`message`) and what to do next (`hint`); `code` is
stable and travels over the wire. Nothing here may carry a secret: an error reaches logs, the store
and replies.
"""

from collections.abc import Sequence
from typing import ClassVar


class ProvisionError(Exception):
    """The root of all errors that provisiond explains; `str()` of it is the message."""

    code: ClassVar[str] = "provision_error"
    default_hint: ClassVar[str] = "Look into provisiond's log."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint if hint is not None else self.default_hint


class SettingsError(ProvisionError):
    """A setting is missing, unknown or wrong; the daemon does not start."""

    code = "wrong_setting"
    default_hint = "Correct it in the TOML file or the environment and start again."


class StateUnusable(ProvisionError):
    """The state file is corrupt, foreign or from a newer provisiond; it is never overwritten."""

    code = "state_unusable"
    default_hint = (
        "Move it and its -wal away; put back a copy that is whole, or none to start empty."
    )


class StateUnwritable(ProvisionError):
    """The state directory or file cannot be written."""

    code = "state_unwritable"
    default_hint = "Make room, or mend owner and mode of the state directory."


class AlreadyRunning(ProvisionError):
    """Another provisiond holds the socket or the state directory."""

    code = "already_running"
    default_hint = "Stop the other one, or give this one a socket and a state directory of its own."


class DaemonUnreachable(ProvisionError):
    """Nothing answers on provisiond's socket."""

    code = "daemon_unreachable"
    default_hint = "Start it: systemctl start provisiond. Or name its socket with --socket."


class ReplyLost(DaemonUnreachable):
    """The connection broke, or stayed silent, before the reply was whole: it may have been done."""

    code = "reply_lost"
    default_hint = "Ask again; a request with the same request_id gives the same job."


class HypervisorUnavailable(ProvisionError):
    """libvirt cannot be reached just now."""

    code = "hypervisor_unavailable"
    default_hint = "Start libvirtd; provisiond reconnects by itself."


class HypervisorFailed(ProvisionError):
    """libvirt refused or failed a call."""

    code = "hypervisor_failed"
    default_hint = "Look into libvirt's log of the domain."


class AttachGivenUp(HypervisorFailed):
    """libxl gave up an attach half-way, as on a host that is too busy; nothing is left of it."""

    code = "attach_given_up"
    default_hint = "Is the host overloaded? Look at what its hotplug scripts wait for."


class XenstoreUnavailable(ProvisionError):
    """xenstored cannot be reached just now, or does not answer."""

    code = "xenstore_unavailable"
    default_hint = "Is xenstored running? provisiond reconnects by itself."


class XenstoreFailed(ProvisionError):
    """xenstored refused a call of ours."""

    code = "xenstore_failed"
    default_hint = "Look at the domain's keys with xenstore-ls, and into xenstored's log."


class DomainNotFound(ProvisionError):
    """No domain has this name or UUID."""

    code = "domain_not_found"
    default_hint = "provisionctl domains lists those that exist."


class DomainNotRunning(ProvisionError):
    """The domain exists but is not running, so nothing can be attached to it."""

    code = "domain_not_running"
    default_hint = "Start it, then ask again."


class DomainExists(ProvisionError):
    """A domain has this name already."""

    code = "domain_exists"
    default_hint = "Choose another name, or destroy that domain first."


class NotMadeHere(ProvisionError):
    """What shall be removed was not made by provisiond."""

    code = "not_made_here"
    default_hint = "Remove it with virsh, or ask again with force."


class TemplateUnusable(ProvisionError):
    """A template is absent, or no domain XML that a guest can be made of."""

    code = "template_unusable"
    default_hint = "Put a domain's XML (virt-install --print-xml) into template_dir."


class BaseNotFound(ProvisionError):
    """No golden base has this name."""

    code = "base_not_found"
    default_hint = "provisionctl base list shows those that exist."


class BaseExists(ProvisionError):
    """A golden base has this name already."""

    code = "base_exists"
    default_hint = "Choose another name: a base is never changed."


class BaseInUse(ProvisionError):
    """The base cannot be removed or used: something has it, or it is being removed."""

    code = "base_in_use"
    default_hint = "Remove what stands on it first."


class BaseChanged(ProvisionError):
    """A base is not what its manifest says: whatever stands on it may be damaged."""

    code = "base_changed"
    default_hint = "Put back the file as it was, or import it anew under another name."


class ImageRefused(ProvisionError):
    """An image is not what it was said to be, or holds what no image given to us may hold."""

    code = "image_refused"
    default_hint = "Convert it with qemu-img on the machine that it comes from."


class ImageBusy(ProvisionError):
    """An image is open for writing: what is read of it now may be half of something."""

    code = "image_busy"
    default_hint = "Stop the guest or program that has it, then ask again."


class ImageNotFound(ProvisionError):
    """The image file does not exist, or is no file that can be read."""

    code = "image_not_found"
    default_hint = "Give the absolute path of a file of this host."


class DiskNotFound(ProvisionError):
    """No disk has this name, or the domain has none at this target."""

    code = "disk_not_found"
    default_hint = "provisionctl disk list shows those that exist, domains those attached."


class DiskExists(ProvisionError):
    """A file of this name exists already; it is never overwritten."""

    code = "disk_exists"
    default_hint = "Choose another name, or remove that disk first."


class DiskInUse(ProvisionError):
    """A domain has the disk, or a job works on it."""

    code = "disk_in_use"
    default_hint = "Detach it first, or destroy the domain; a job shows when it has ended."


class SizeTooSmall(ProvisionError):
    """The disk would be smaller than the base it stands on."""

    code = "size_too_small"
    default_hint = "Leave size out, and it is the base's."


class ChainTooDeep(ProvisionError):
    """The disk would stand on more images than may be."""

    code = "chain_too_deep"
    default_hint = "Import the disk that it shall stand on as a base of its own, without a parent."


class NoSpace(ProvisionError):
    """The file system has not enough room; what was written of the file is removed."""

    code = "no_space"
    default_hint = "Make room in image_dir; reserve_mib is always left free."


class VhdNeedsTapdisk(ProvisionError):
    """A VHD overlay would be opened by QEMU, which reads it as zeros and then destroys it."""

    code = "vhd_needs_tapdisk"
    default_hint = "Use qcow2; VHD overlays need a Xen host with tapdisk (XCP-ng, XenServer)."


class Busy(ProvisionError):
    """Another job is at work on this domain, base or disk."""

    code = "busy"
    default_hint = "Wait for that job to end, or cancel it."


class NoGuestChannel(ProvisionError):
    """The guest has no way to answer."""

    code = "no_guest_channel"
    default_hint = (
        "Add <channel type='unix'><target type='virtio' name='org.provisiond.0'/></channel> "
        "to the domain and start it again."
    )


class NoAddress(ProvisionError):
    """Nobody tells an address of the guest."""

    code = "no_address"
    default_hint = "Is it running, and its network up? provisionctl domains shows what is known."


class NoFreeTarget(ProvisionError):
    """Every disk target that the disk may take is taken."""

    code = "no_free_target"
    default_hint = "Detach a disk from the domain, then ask again."


class DiskStillAttached(ProvisionError):
    """libvirt accepted the detach but the disk still stands in the live XML."""

    code = "disk_still_attached"
    default_hint = "Unmount or eject it in the guest; the detach is tried again."


class IsoNotWritten(ProvisionError):
    """The config ISO could not be written, or does not read back as it was written."""

    code = "iso_not_written"
    default_hint = "Make room on the runtime directory's tmpfs, then ask again."


class IsoNotDestroyed(ProvisionError):
    """The config ISO is detached, but it cannot be overwritten and unlinked."""

    code = "iso_not_destroyed"
    default_hint = "Make the runtime directory writable again; it is tried again until it is gone."


class GuestFailed(ProvisionError):
    """The guest's script reported that a step failed."""

    code = "guest_failed"
    default_hint = "Mend in the guest what its log names (provisionctl show), then ask again."

    def __init__(self, message: str, *, step: str) -> None:
        super().__init__(message)
        self.step = step


class GuestLost(ProvisionError):
    """The guest was stopped, crashed or replaced while it was being configured."""

    code = "guest_lost"
    default_hint = "Start the domain and ask again with a new request_id."


class GuestRestarted(ProvisionError):
    """The guest runs as another domain now, without the disks that were attached to the old one."""

    code = "guest_restarted"
    default_hint = "Nothing: provisiond attaches the config ISO again."


class RequestConflict(ProvisionError):
    """The request_id is known, with another body."""

    code = "request_conflict"
    default_hint = "Use a new request_id for a new request."


class JobNotFound(ProvisionError):
    """No job has this id."""

    code = "job_not_found"
    default_hint = "provisionctl jobs lists those that exist."


class JobEnded(ProvisionError):
    """The job cannot be cancelled any more."""

    code = "job_ended"
    default_hint = "Nothing is left to cancel."


class TooManyJobs(ProvisionError):
    """The queue of waiting jobs is full."""

    code = "too_many_jobs"
    default_hint = "Ask again later; Retry-After says when."


class Forbidden(ProvisionError):
    """The caller may not do this."""

    code = "forbidden"
    default_hint = (
        "Ask as an operator: README.md, 'Who may call', says who is one. A viewer may only read."
    )


class TooManyRequests(ProvisionError):
    """The caller asks faster than it may; it may again in `retry_after` seconds."""

    code = "too_many_requests"
    default_hint = "Ask more slowly; Retry-After says when. /v1/events tells what changes."

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(ProvisionError):
    """The caller has too many requests at work at once."""

    code = "overloaded"
    default_hint = "Wait for the answers of some first."


class ShuttingDown(ProvisionError):
    """The daemon is stopping and takes no new work."""

    code = "shutting_down"
    default_hint = "Ask again when it is back."


class NotPermitted(ProvisionError):
    """This user may not do it on this host."""

    code = "not_permitted"
    default_hint = "Become root: sudo."


class ImageNotVerified(ProvisionError):
    """A guest of the image did not become what it was to become; `console` is what it said last."""

    code = "image_not_verified"
    default_hint = (
        "Look at what the guest says on its console, and with --screenshot at its screen."
    )

    def __init__(
        self, message: str, *, hint: str | None = None, console: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.console = tuple(console)


class AgentSilent(ImageNotVerified):
    """No guest script said hello in time."""

    code = "agent_silent"
    default_hint = (
        "Is it in the image, and does it start at boot? provisionctl image bake puts it there; "
        "a slow guest needs more time."
    )


class NoLogin(ImageNotVerified):
    """The guest was configured, but nobody could log in on its serial console to look."""

    code = "no_login"
    default_hint = (
        "The image needs console=ttyS0 and a getty there; --no-login is content without it."
    )


class ToolFailed(ProvisionError):
    """A program that provisiond runs is absent or ended with an error."""

    code = "tool_failed"
    default_hint = "The message holds the tool's own words."


class ToolMissing(ProvisionError):
    """A program that a command needs is not installed."""

    code = "tool_missing"
    default_hint = "Install the package that the message names."


class RecipeRefused(ProvisionError):
    """An image cannot be built of what was asked for."""

    code = "recipe_refused"
    default_hint = "provisionctl image build --help tells what each builder takes."


class WrongPhase(ProvisionError):
    """A phase of a build cannot be done yet."""

    code = "wrong_phase"
    default_hint = "Run the phases before it first."


class BuildBusy(ProvisionError):
    """A build is at work in the folder."""

    code = "build_busy"
    default_hint = "Wait for its end, or end it."


class NotReady(ProvisionError):
    """The host cannot build this image as it is."""

    code = "not_ready"
    default_hint = "Mend what the message names, then ask again."


class BuildFailed(ProvisionError):
    """A phase of a build failed."""

    code = "build_failed"
    default_hint = "The phase's log in the build's folder has the tool's own words."


class DownloadFailed(ProvisionError):
    """A file cannot be fetched, or is not the one that was asked for."""

    code = "download_failed"
    default_hint = "Look at the address and its checksum, then ask again."


class Cancelled(ProvisionError):
    """Somebody cancelled the job while it could still fail."""

    code = "cancelled"
    default_hint = "Ask again with a new request_id if it was a mistake."


class DeadlinePassed(ProvisionError):
    """A phase, or all of a job that may fail, took longer than it may."""

    code = "deadline_exceeded"
    default_hint = (
        "See how far it came (provisionctl show); if it was at work, ask again with more time."
    )


class Interrupted(ProvisionError):
    """provisiond or the host was stopped while the job's secret was in memory only."""

    code = "interrupted"
    default_hint = "Ask again with a new request_id."


class Unforeseen(ProvisionError):
    """A defect of provisiond itself; the log has the details."""

    code = "internal_error"
    default_hint = "Report it with provisiond's log."
