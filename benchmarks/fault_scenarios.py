"""The scenarios of `faults.py`: how large a run is, what it talks to, and what goes wrong when."""

from fault_proxy import Rule
from fault_world import Inject, Scenario, World


def freeze(seconds: float | None) -> Inject:
    """Freeze the stub after a quarter of the rows, for some seconds or for good."""

    def inject(world: World) -> None:
        if world.wait_for_answers(0.25):
            world.servers.stubs[0].freeze()
            if seconds:
                world.wait_for_end(seconds)
                world.servers.stubs[0].thaw()

    return inject


def kill_stub(seconds: float) -> Inject:
    """Kill the first stub after a third of the rows, and start it again after some seconds."""

    def inject(world: World) -> None:
        if world.wait_for_answers(0.33):
            world.servers.stubs[0].kill()
            world.wait_for_end(seconds)
            world.servers.stubs[0].start()

    return inject


def kill_prefect(seconds: float | None) -> Inject:
    """Kill Prefect's server after a third of the rows, for some seconds or for good."""

    def inject(world: World) -> None:
        if world.wait_for_answers(0.33):
            world.servers.prefect.kill()
            if seconds:
                world.wait_for_end(seconds)
                world.servers.prefect.start()

    return inject


def s3_away(trigger: Rule | None, seconds: float | None) -> Inject:
    """Close the S3 server's port during the request that triggers it, by default at the start."""

    def inject(world: World) -> None:
        assert world.servers.proxy
        if trigger and not world.wait_for_s3_request(trigger):
            return
        if seconds is None:
            world.servers.until_end.enter_context(world.servers.proxy.away())
            return
        with world.servers.proxy.away():
            world.wait_for_end(seconds)
        world.servers.proxy.set_rules([])

    return inject


def at(path: str, method: str, first: int = 1) -> Rule:
    """A rule that triggers a fault before S3 has replied to a request."""
    return Rule("slow", method, path, first, count=1, seconds=1)


MOMENTS = {
    "loading": at(r"/rows\.json", "GET"),
    "storing": at("/parts/", "PUT", first=5),
    "exporting": at(r"/qa\.jsonl", "PUT"),
}
SLOW = ("--latency=1", "--slots=40")
STEADY = ("--latency=1", "--slots=128")
HALF_STEADY = ("--latency=1", "--slots=64")
LONG = ("--latency=1", "--slots=32")

SCENARIOS: dict[str, Scenario] = {
    "frozen-for-good": Scenario(400, freeze(None), (SLOW,), flags=["--server-wait=60"]),
    "frozen-60s": Scenario(400, freeze(60), (SLOW,)),
    "hang-1": Scenario(2000, faults=["--hang-share=0.01"]),
    "hang-5": Scenario(2000, faults=["--hang-share=0.05"]),
    "fail-5": Scenario(4096, faults=["--fail-share=0.05", "--fail-status=500"]),
    "drop-5": Scenario(4096, faults=["--drop-share=0.05"]),
    "garbage-5": Scenario(4096, faults=["--garbage-share=0.05"]),
    "gateway-5": Scenario(200, faults=["--rate=5"]),
    "gateway-2": Scenario(120, faults=["--rate=2"]),
    "gateway-1": Scenario(80, faults=["--rate=1"]),
    "server-away-30": Scenario(2000, kill_stub(30), (STEADY,)),
    "server-away-100": Scenario(2000, kill_stub(100), (STEADY,)),
    "two-servers-one-killed-and-back": Scenario(2000, kill_stub(20), (HALF_STEADY, HALF_STEADY)),
    **{
        f"s3-away-{seconds}-{moment}": Scenario(
            1000,
            s3_away(trigger, seconds),
            (STEADY,),
            flags=["--batch-size=64"],  # so that parts are stored all the time
            on_s3=["dataset", "images", "output"],
        )
        for moment, trigger in MOMENTS.items()
        for seconds in (2, 20, 60)
    },
    "image-store-away": Scenario(
        400,
        s3_away(None, None),
        flags=["--store-wait=60"],
        on_s3=["images"],
    ),
    "image-store-away-20": Scenario(
        1000,
        s3_away(at("/images/", "GET", first=300), 20),
        on_s3=["images"],
        distinct_images=True,
    ),
    "prefect-killed": Scenario(2000, kill_prefect(None), (LONG,), own_prefect=True),
    "prefect-killed-45": Scenario(2000, kill_prefect(45), (LONG,), own_prefect=True),
}
