"""Who a caller is, and what that allows."""

import pytest

from provisiond.api.callers import (
    LocalRoles,
    RemoteRoles,
    Role,
    local_caller,
    names_of,
    remote_caller,
)

OPS, WATCH = 101, 102


@pytest.mark.parametrize(
    ("uid", "groups", "role"),
    [
        (0, {0}, Role.OPERATOR),
        (1000, {1000, OPS}, Role.OPERATOR),
        (1000, {1000, WATCH}, Role.VIEWER),
        (1000, {WATCH, OPS}, Role.OPERATOR),
        (1000, {1000, 0}, Role.NOBODY),
        (OPS, {1000}, Role.NOBODY),
    ],
)
def test_a_process_has_the_role_of_its_groups(uid: int, groups: set[int], role: Role) -> None:
    roles = LocalRoles(OPS, viewers=WATCH)
    caller = local_caller(pid=7, uid=uid, user="alice", groups=groups, roles=roles)
    assert (caller.name, caller.role) == ("unix:alice", role)
    assert caller.detail == f"uid {uid}, pid 7"


def test_a_user_without_a_name_is_a_number_and_without_a_viewer_group_nobody_views() -> None:
    caller = local_caller(pid=7, uid=1000, user=None, groups={WATCH}, roles=LocalRoles(OPS))
    assert (caller.name, caller.role) == ("unix:1000", Role.NOBODY)


def test_only_an_operator_may_change_anything() -> None:
    methods = ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "get")
    allowed = {role: [method for method in methods if role.may(method)] for role in Role}
    assert allowed == {
        Role.OPERATOR: list(methods),
        Role.VIEWER: ["GET", "HEAD"],
        Role.NOBODY: [],
    }


def certificate(*dns: str, common_name: str = "") -> dict[str, object]:
    return {
        "subject": ((("organizationName", "example"),), (("commonName", common_name),)),
        "subjectAltName": tuple(("DNS", name) for name in dns),
    }


@pytest.mark.parametrize(
    ("found", "name", "role"),
    [
        (certificate("master.example.org"), "tls:master.example.org", Role.OPERATOR),
        (certificate("x.example.org", "watch"), "tls:watch", Role.VIEWER),
        (certificate("watch", "master.example.org"), "tls:master.example.org", Role.OPERATOR),
        (certificate(common_name="watch"), "tls:watch", Role.VIEWER),
        (certificate("x", common_name="master.example.org"), "tls:x", Role.NOBODY),
        (certificate("MASTER.example.org"), "tls:MASTER.example.org", Role.NOBODY),
        (certificate("*.example.org"), "tls:*.example.org", Role.NOBODY),
        (certificate("a\x1b[31m\nb"), "tls:without a name", Role.NOBODY),
        ({}, "tls:without a name", Role.NOBODY),
    ],
)
def test_a_client_has_the_role_of_its_names(
    found: dict[str, object], name: str, role: Role
) -> None:
    roles = RemoteRoles(operators=("master.example.org",), viewers=("watch",))
    caller = remote_caller(found, address="192.0.2.1 port 5", roles=roles)
    assert (caller.name, caller.role, caller.detail) == (name, role, "192.0.2.1 port 5")


def test_the_common_name_counts_only_where_there_is_no_other() -> None:
    assert names_of(certificate("a", "b", common_name="c")) == ["a", "b"]
    assert names_of(certificate(common_name="c")) == ["c"]
