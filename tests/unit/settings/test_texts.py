"""Every setting has a text that names its unit."""

import pytest

from deploy.docs.generate.settings import descriptions, groups
from serving.settings import (
    PoolScalingSettings,
    PoolSettings,
    ScheduleFloor,
    ServedModelSettings,
)
from serving.settings.models import ModelBatchSettings
from serving.settings.pool_scaling import PoolBatchScalingSettings, PoolKubernetesSettings

CLASSES = groups() | {
    "autoscaler.schedule[]": ScheduleFloor,
    "models[]": ServedModelSettings,
    "models[].batch": ModelBatchSettings,
    "models[].pools[]": PoolSettings,
    "models[].pools[].autoscaler": PoolScalingSettings,
    "models[].pools[].autoscaler.batch": PoolBatchScalingSettings,
    "models[].pools[].autoscaler.kubernetes": PoolKubernetesSettings,
}
DURATIONS = ("timeout", "interval", "window", "_slo", "_ttl", "backoff", "ageing", "_seconds")
FIELDS = [
    pytest.param(cls, name, id=f"{group}.{name}")
    for group, cls in CLASSES.items()
    for name, field in cls.model_fields.items()
    if field.annotation not in CLASSES.values()
]


@pytest.mark.parametrize(("cls", "name"), FIELDS)
def test_every_field_has_a_text_with_its_unit(cls, name):
    text = descriptions(cls)[name]
    assert text.rstrip().endswith((".", ")")), text
    rate = name.endswith("tokens_per_second")
    if any(word in name for word in DURATIONS) and not rate:
        assert "second" in text, text
    if name.endswith("_bytes"):
        assert "bytes" in text, text
