"""The password's hash is in the shadow file afterwards, and never was anywhere else."""

from tests.guest.machine import LOG_FILE, NONCE, SECRET, Machine
from tests.guest.machine import configuration as conf

KEY_BODY = "AAAAC3NzaC1lZDI1NTE5AAAAIGJ5dGVz"
TEXT = conf(
    PASSWORD_HASH=SECRET, SSH_KEY0=f"ssh-ed25519 {KEY_BODY} me", IF0_ADDRESSES="10.0.0.5/24"
)

# Stands before a tool: keeps what every process here shows to others, then runs the tool.
WITNESS = """\
#!/bin/sh
for process in /proc/[0-9]*; do
    tr '\\000' '\\n' <$process/cmdline
    tr '\\000' '\\n' <$process/environ
done >>/witness 2>/dev/null
exec {tool} "$@"
"""


def test_the_secret_is_in_no_argument_and_in_no_environment(machine: Machine) -> None:
    # What the caller exports under the script's own names must not make them travel either.
    names = ("secret", "config", "value", "line", "keys", "text", "output", "PASSWORD_HASH")
    hostile = dict.fromkeys(names, "from-outside") | {"SHELLOPTS": "xtrace"}
    machine.path("/usr/sbin/chpasswd").rename(machine.path("/usr/sbin/chpasswd.real"))
    chpasswd = WITNESS.format(tool="/usr/sbin/chpasswd.real")
    machine.write("/usr/sbin/chpasswd", chpasswd, mode=0o755)
    machine.path("/etc/passwd-").unlink(missing_ok=True)
    if machine.kind == "busybox":
        for applet in ("sync", "date", "dd", "ip", "grep", "cat"):
            machine.path(f"/bin/{applet}").unlink()
            text = WITNESS.format(tool=f"/bin/busybox {applet}")
            machine.write(f"/bin/{applet}", text, mode=0o755)
    outcome = machine.provision(TEXT, environment=hostile)
    assert outcome.status == 0
    seen = machine.read("/witness")
    assert "provision-guest" in seen
    assert "chpasswd" in seen
    assert "LC_ALL=C" in seen
    for secret in (SECRET, SECRET[-20:], KEY_BODY):
        assert secret not in seen
        assert secret not in outcome.log


def test_the_secret_is_left_in_no_other_file(machine: Machine) -> None:
    # A failure at the very end, when everything has been in use.
    machine.write("/usr/sbin/chpasswd.real", machine.read_bytes("/usr/sbin/chpasswd"), mode=0o755)
    machine.path("/usr/sbin/chpasswd").unlink()
    lying = '#!/bin/sh\nread -r line\necho "I was given $line" >&2\nexit 1\n'
    machine.write("/usr/sbin/chpasswd", lying, mode=0o755)
    outcome = machine.provision(TEXT)
    assert outcome.failed_step == "password"
    assert "left out: it held the hash" in outcome.log
    machine.write("/usr/sbin/chpasswd", machine.read_bytes("/usr/sbin/chpasswd.real"), mode=0o755)
    assert machine.provision(TEXT).status == 0
    machine.path("/run/config/provision.conf").unlink()
    folders = ["/etc", "/root/.ssh", "/run", "/tmp", "/var/lib/provision-guest", "/var/log"]
    shown = machine.run("sh", "-c", f"grep -rlF '{SECRET}' {' '.join(folders)} 2>/dev/null || true")
    assert shown.split() == ["/etc/shadow"]
    assert KEY_BODY not in machine.read(LOG_FILE)
    assert NONCE not in machine.read(LOG_FILE)


def test_a_refused_hash_is_not_repeated(machine: Machine) -> None:
    outcome = machine.provision(conf(PASSWORD_HASH="plain-text-password"))
    assert outcome.failed_step == "config"
    assert "the value of PASSWORD_HASH is not acceptable" in outcome.log
    assert "plain-text" not in outcome.log
    outcome = machine.provision(conf(PASSWORD_HASHES=SECRET) + SECRET + "\n")
    assert outcome.failed_step == "config"
    assert SECRET[3:] not in outcome.log
