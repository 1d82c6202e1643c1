"""The contract of every actuator, real or fake, and the specifics of Ray Serve."""

import httpx
import pytest

from serving.autoscaler.actuators import ray_serve
from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.ray_serve import RayServeActuator
from serving.autoscaler.routers import ObservedGroup
from serving.engine.ray import deployment
from serving.settings import AutoscalerSettings
from tests.support.fake_actuator import FakeActuator
from tests.unit.autoscaler.actuators.serve_api import APP, Groups, ServeApi


def serve_actuator(
    api: ServeApi, groups: Groups, ranks: int = 2, app: str = APP, **settings
) -> RayServeActuator:
    return RayServeActuator(
        httpx.AsyncClient(transport=api.transport()),
        AutoscalerSettings(dashboard_url="http://ray", **settings),
        app=app,
        ranks=ranks,
        groups=groups,
        drains=groups,
    )


def seen(name: str, since: float, *, ready: bool = True) -> ObservedGroup:
    return ObservedGroup(name, since, frozenset({"n"}), ready)


# -- the contract ---------------------------------------------------------------------------------


def make_fake():
    fake = FakeActuator(2)
    return fake, lambda why: setattr(fake, "failing", why)


def make_ray_serve():
    api = ServeApi(replicas=4)

    def fail(why):
        api.status = 503 if why else 200

    return serve_actuator(api, Groups()), fail


MAKERS = [pytest.param(make_fake, id="fake"), pytest.param(make_ray_serve, id="ray-serve")]


@pytest.mark.parametrize("make", MAKERS)
async def test_what_is_asked_for_is_the_target(make):
    actuator, _ = make()
    assert await actuator.target() == 2
    for groups in (5, 5, 1, 0, 3):
        await actuator.scale(groups)
        assert await actuator.target() == groups


@pytest.mark.parametrize("make", MAKERS)
async def test_a_failure_is_an_actuator_error_and_changes_nothing(make):
    actuator, fail = make()
    fail("away")
    with pytest.raises(ActuatorError):
        await actuator.target()
    with pytest.raises(ActuatorError):
        await actuator.scale(7)
    fail("")
    assert await actuator.target() == 2


@pytest.mark.parametrize("make", MAKERS)
async def test_less_than_nothing_is_refused(make):
    actuator, _ = make()
    with pytest.raises(ActuatorError):
        await actuator.scale(-1)
    assert await actuator.target() == 2


# -- Ray Serve ------------------------------------------------------------------------------------


def test_the_deployment_is_the_one_that_we_deploy():
    assert ray_serve.DEPLOYMENT == deployment.DEPLOYMENT


async def test_only_whole_groups_are_sent():
    api = ServeApi(replicas=8, gang=4)
    await serve_actuator(api, Groups(), ranks=4).scale(3)
    assert [body for method, _, body in api.requests if method == "POST"] == [
        {"target_num_replicas": 12}
    ]


async def test_what_serve_did_not_apply_is_an_error():
    api = ServeApi(replicas=4, gang=4)  # a gang size other than in the settings
    with pytest.raises(ActuatorError, match="accepted 3 groups, but its target is still 2"):
        await serve_actuator(api, Groups(), ranks=2).scale(3)


async def test_part_of_a_group_is_an_error():
    with pytest.raises(ActuatorError, match=r"group\.data_parallel"):
        await serve_actuator(ServeApi(replicas=5), Groups()).target()


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        pytest.param(404, None, "404: said by Ray", id="not-deployed"),
        pytest.param(412, None, "412: said by Ray", id="external-scaler-off"),
        pytest.param(503, None, "503", id="controller-away"),
        pytest.param(200, httpx.ConnectError("refused"), "does not respond", id="away"),
        pytest.param(200, httpx.ReadTimeout("slow"), "does not respond", id="slow"),
    ],
)
async def test_refusals_are_told(status, error, said):
    api = ServeApi()
    api.status, api.error = status, error
    with pytest.raises(ActuatorError, match=said):
        await serve_actuator(api, Groups()).target()


async def test_an_application_that_is_not_there_is_named():
    api = ServeApi()
    actuator = serve_actuator(api, Groups(), app="other")
    with pytest.raises(ActuatorError, match="no application other"):
        await actuator.target()


async def test_the_newest_groups_are_drained_before_fewer_are_asked_for():
    api = ServeApi(replicas=6)
    groups = Groups(seen("old", 1), seen("new", 3), seen("middle", 2))
    await serve_actuator(api, groups).scale(1)
    assert groups.calls == [("drain", "new"), ("drain", "middle")]
    assert api.replicas == 2


async def test_groups_that_are_not_ready_go_first_and_need_no_drain():
    groups = Groups(seen("old", 1), seen("joining", 3, ready=False))
    await serve_actuator(ServeApi(replicas=4), groups).scale(1)
    assert groups.calls == []


async def test_a_group_that_never_joined_is_counted_among_those_that_go():
    groups = Groups(seen("a", 1), seen("b", 2))
    await serve_actuator(ServeApi(replicas=6), groups).scale(2)
    assert groups.calls == []


async def test_a_refused_scale_down_gives_the_work_back():
    api = ServeApi(replicas=4)
    api.status, api.only_posts_fail = 503, True
    groups = Groups(seen("a", 1), seen("b", 2))
    with pytest.raises(ActuatorError):
        await serve_actuator(api, groups).scale(1)
    assert groups.calls == [("drain", "b"), ("restore", "b")]


async def test_a_drained_group_that_serve_keeps_gets_its_work_back():
    groups = Groups(seen("a", 1), seen("b", 2))
    actuator = serve_actuator(ServeApi(replicas=4), groups)
    await actuator.scale(1)
    await actuator.target()  # both are still alive: it is unknown yet which one will stop
    groups.living = [seen("b", 2)]
    await actuator.target()
    await actuator.target()
    assert groups.calls == [("drain", "b"), ("restore", "b")]


async def test_a_drained_group_that_went_is_forgotten():
    groups = Groups(seen("a", 1), seen("b", 2))
    actuator = serve_actuator(ServeApi(replicas=4), groups)
    await actuator.scale(1)
    groups.living = [seen("a", 1)]
    await actuator.target()
    assert groups.calls == [("drain", "b")]


async def test_the_token_is_shown(tmp_path):
    token = tmp_path / "token"
    token.write_text("secret")
    api = ServeApi()
    await serve_actuator(api, Groups(), dashboard_token_file=str(token)).target()
    assert api.tokens == {"Bearer secret"}


async def test_a_drained_group_is_not_forgotten_while_no_router_answers():
    groups = Groups(seen("a", 1), seen("b", 2))
    actuator = serve_actuator(ServeApi(replicas=4), groups)
    await actuator.scale(1)
    groups.silent = True
    assert await actuator.target() == 1
    groups.silent = False
    groups.living = [seen("b", 2)]
    await actuator.target()
    assert groups.calls == [("drain", "b"), ("restore", "b")]


async def test_fewer_groups_are_not_asked_for_while_no_router_answers():
    api = ServeApi(replicas=4)
    groups = Groups(seen("a", 1), seen("b", 2))
    groups.silent = True
    with pytest.raises(ActuatorError):
        await serve_actuator(api, groups).scale(1)
    assert api.replicas == 4


async def test_where_its_replicas_are():
    api = ServeApi(replicas=2)
    api.nodes = ["10.0.0.1", "10.0.0.2"]
    assert await serve_actuator(api, Groups()).occupied() == {"10.0.0.1", "10.0.0.2"}
    api.nodes = ["10.0.0.1", None]
    with pytest.raises(ActuatorError, match="no node yet"):
        await serve_actuator(api, Groups()).occupied()
