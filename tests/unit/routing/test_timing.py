"""Scorers are timed by whoever calls them, not by themselves."""

from serving.routing.decision import Demand
from serving.routing.scheduler import Chooser
from serving.routing.scorers import SCORERS
from serving.settings import RoutingSettings
from serving.telemetry.metrics import REGISTRY
from tests.unit.routing.fleets import fleet, loads


def seconds(scorer):
    return REGISTRY.get_sample_value("moe_routing_scorer_seconds_total", {"scorer": scorer})


def test_each_scorer_that_has_a_weight_is_timed():
    before = {name: seconds(name) for name in SCORERS}
    weights = RoutingSettings().weights.model_copy(update={"balance": 0.0})
    Chooser(RoutingSettings(weights=weights)).choose(fleet(loads(1, 2)), Demand(10), 0.0)
    after = {name: seconds(name) for name in SCORERS}
    assert {name for name in SCORERS if after[name] > before[name]} == SCORERS.keys() - {"balance"}
