"""Every error an operator or a master can meet, one class for each thing they would do differently.

An error says what happened to which object (`message`) and what to do next (`hint`); `code` is
stable and travels over the wire. Nothing here may carry a secret: an error reaches logs, the store
and replies.
"""

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
    default_hint = "Move it away to start empty, or put back a copy that is whole."


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


class DomainBusy(ProvisionError):
    """Another job works on this domain."""

    code = "domain_busy"
    default_hint = "Wait for that job to end, or cancel it."


class NoGuestChannel(ProvisionError):
    """The guest has no way to answer."""

    code = "no_guest_channel"
    default_hint = (
        "Add <channel type='unix'><target type='virtio' name='org.provisiond.0'/></channel> "
        "to the domain and start it again."
    )


class NoFreeTarget(ProvisionError):
    """Every disk target that the config ISO may take is taken."""

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


class ShuttingDown(ProvisionError):
    """The daemon is stopping and takes no new work."""

    code = "shutting_down"
    default_hint = "Ask again when it is back."


class ToolFailed(ProvisionError):
    """A program that provisiond runs is absent or ended with an error."""

    code = "tool_failed"
    default_hint = "The message holds the tool's own words."


class Cancelled(ProvisionError):
    """Somebody cancelled the job before the guest was configured."""

    code = "cancelled"
    default_hint = "Ask again with a new request_id if it was a mistake."


class DeadlinePassed(ProvisionError):
    """A phase, or the whole job up to the guest's verdict, took longer than it may."""

    code = "deadline_exceeded"
    default_hint = "Look at the guest's console: does its script run, and see the disk?"


class Interrupted(ProvisionError):
    """provisiond or the host was stopped while the job's secret was in memory only."""

    code = "interrupted"
    default_hint = "Ask again with a new request_id."


class Unforeseen(ProvisionError):
    """A defect of provisiond itself; the log has the details."""

    code = "internal_error"
    default_hint = "Report it with provisiond's log."
