"""The HTTP API without a guest: what is refused, and how the refusal reads."""

from typing import Any

import pytest

from tests.daemon.program import Daemon, request

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hostname": "web_1"}, "config.hostname"),
    ({"hostname": "a" * 64}, "config.hostname"),
    ({"ip": "10.0.2.15"}, "config.ip"),
    ({"ip": "10.0.2.300/24"}, "config.ip"),
    ({"gateway": "192.168.0.1"}, "config.gateway"),
    ({"password": "two\nlines"}, "config.password"),
    ({"password_hash": "$6$abcdefgh$" + "x" * 86}, "config.password_hash"),
    ({"ssh_authorized_keys": ["ssh-ed25519 AAAA!"]}, "config.ssh_authorized_keys[0]"),
    ({"timezone": "../../etc/shadow"}, "config.timezone"),
    ({"user": "Root"}, "config.user"),
    ({"nameservers": ["10.0.2.3", "dns"]}, "config.nameservers[1]"),
    ({"search": ["-x"]}, "config.search[0]"),
    ({"colour": "red"}, "config.colour"),
    ({"deadline_seconds": 0}, "deadline_seconds"),
    ({"request_id": "a b"}, "request_id"),
    ({"target": "hda"}, "target"),
    (
        {"ip": None, "interfaces": [{"addresses": ["10.1.0.2/24"], "gateway4": "10.2.0.1"}]},
        "config.interfaces[0].gateway4",
    ),
    (
        {"ip": None, "interfaces": [{"mac": "zz", "addresses": ["10.1.0.2/24"]}]},
        "config.interfaces[0].mac",
    ),
]


@pytest.mark.parametrize(("change", "field"), REFUSED, ids=[field for _, field in REFUSED])
async def test_a_wrong_field_is_named_and_its_value_never_repeated(
    daemon: Daemon, change: dict[str, Any], field: str
) -> None:
    reply = await daemon.post(request("test", **change))
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    error = reply.json()
    assert error["code"] == "invalid_request"
    assert [one["field"] for one in error["fields"]] == [field]
    assert error["hint"]
    assert "correct horse" not in reply.text
    assert "two" not in reply.text
    assert (await daemon.get("/v1/jobs")).json() == {"jobs": []}


async def test_a_body_that_is_no_json_or_too_large_is_refused(daemon: Daemon) -> None:
    async with daemon.http() as http:
        broken = await http.post(
            "/v1/jobs", content=b"{", headers={"Content-Type": "application/json"}
        )
        assert broken.status_code == 422
        assert broken.json()["code"] == "invalid_request"
        assert [one["field"] for one in broken.json()["fields"]] == ["body"]
        large = await http.post("/v1/jobs", content=b" " * 300_000)
        assert large.status_code == 413
        assert large.json()["code"]


@pytest.mark.parametrize("path", ["/v1/jobs/00ff", "/v1/jobs/00ff/events", "/v1/nothing"])
async def test_what_does_not_exist_is_404_with_a_code_and_a_hint(daemon: Daemon, path: str) -> None:
    reply = await daemon.get(path)
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["code"] in ("job_not_found", "not_found")
    assert reply.json()["hint"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/domains/%00", 404),
        ("GET", "/v1/domains/" + "x" * 5000, 404),
        ("GET", "/v1/bases/%00", 422),
        ("GET", "/v1/bases/.hidden", 422),
        ("DELETE", "/v1/bases/%00", 422),
        ("DELETE", "/v1/disks/a%0Ab", 422),
        ("DELETE", "/v1/disks/" + "x" * 64, 422),
    ],
)
async def test_what_is_no_name_is_refused(
    daemon: Daemon, method: str, path: str, status: int
) -> None:
    async with daemon.http() as http:
        reply = await http.request(method, path)
    assert reply.status_code == status, reply.text
    assert reply.json()["code"] in ("domain_not_found", "invalid_request")


async def test_what_is_there_but_not_so_says_how(daemon: Daemon) -> None:
    async with daemon.http() as http:
        put = await http.put("/v1/jobs")
        assert (put.status_code, put.json()["code"]) == (405, "method_not_allowed")
        assert put.headers["allow"] == "GET, POST"
        far = await http.get("/v1/events", headers={"Last-Event-ID": str(2**63)})
        assert (far.status_code, far.json()["fields"][0]["field"]) == (422, "last-event-id")
        assert (await http.get("/v1/jobs/")).status_code == 404


async def test_a_reply_names_a_hundred_refused_fields_at_most(daemon: Daemon) -> None:
    reply = await daemon.post({f"field{number}": 1 for number in range(10_000)})
    assert reply.status_code == 422
    assert len(reply.json()["fields"]) == 100


async def test_a_domain_that_does_not_exist_is_refused(daemon: Daemon) -> None:
    reply = await daemon.post(request("nobody"))
    assert reply.status_code == 404
    assert reply.json()["code"] == "domain_not_found"
    assert "nobody" in reply.json()["message"]


async def test_a_domain_without_a_channel_is_refused_and_told_how_to_get_one(
    daemon: Daemon,
) -> None:
    reply = await daemon.post(request("test"))
    assert reply.status_code == 409
    assert reply.json()["code"] == "no_guest_channel"
    assert "org.provisiond.0" in reply.json()["hint"]
    assert (await daemon.get("/v1/jobs")).json() == {"jobs": []}


async def test_domains_health_metrics_and_openapi_are_served(daemon: Daemon) -> None:
    (domain,) = (await daemon.get("/v1/domains")).json()["domains"]
    assert (domain["name"], domain["state"], domain["domid"]) == ("test", "running", 1)
    assert (await daemon.get("/healthz")).json()["ok"] is True
    metrics = (await daemon.get("/metrics")).text
    assert "provisiond_hypervisor_connected 1.0" in metrics
    assert "provisiond_jobs_unfinished 0.0" in metrics
    paths = (await daemon.get("/openapi.json")).json()["paths"]
    assert {"/v1/jobs", "/v1/jobs/{job_id}", "/v1/events", "/v1/domains"} <= set(paths)
    replies = paths["/v1/jobs"]["post"]["responses"]
    refusals = {status for status in replies if status >= "400"}
    assert refusals == {"400", "403", "404", "409", "413", "422", "429", "500", "503", "507"}
    for status in refusals:
        assert list(replies[status]["content"]) == ["application/problem+json"]
    (header,) = paths["/v1/events"]["get"]["parameters"]
    assert (header["schema"]["type"], header["schema"]["maximum"]) == ("integer", 2**63 - 1)
    unwell = paths["/healthz"]["get"]["responses"]["503"]["content"]
    assert unwell["application/json"]["schema"]["$ref"].endswith("/HealthView")
    assert unwell["application/problem+json"]["schema"]["$ref"].endswith("/ErrorReply")
