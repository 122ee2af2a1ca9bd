"""What `make fuzz` asks of the API, in small; and that it would see what is wrong."""

from tests.fuzz.api import CAMPAIGNS, api_host, leftovers, run, settle


async def test_whatever_the_openapi_allows_is_answered_as_it_says() -> None:
    async with api_host() as host:
        for campaign in CAMPAIGNS:
            status, said = await run(host, campaign, examples=3, seed=1)
            assert status == 0, f"{campaign.name}: {said}\n{host.daemon.said()[-3000:]}"
        ended = await settle(host)
        assert await leftovers(host) == []
    # Those of api_host itself are two: the others were asked for by schemathesis.
    assert sum(ended.values()) > 5, ended
    assert not [what for what in ended if "internal_error" in what], ended
