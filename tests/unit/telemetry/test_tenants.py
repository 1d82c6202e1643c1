"""TenantTokens: counts by tenant, bounded."""

from serving.telemetry.metrics import REGISTRY
from serving.telemetry.tenants import TenantTokens


def value(tenant, kind):
    return REGISTRY.get_sample_value("moe_tenant_tokens_total", {"tenant": tenant, "kind": kind})


def test_the_first_have_a_label_each_and_the_rest_share_one():
    before = [value("other", kind) or 0 for kind in ("prompt", "cached", "generated")]
    tokens = TenantTokens(2)
    for tenant in ("tt-a", "tt-b", "tt-c", "tt-d", "tt-a"):
        tokens.count(tenant, prompt=10, cached=4, generated=3)
    assert [value("tt-a", kind) for kind in ("prompt", "cached", "generated")] == [20, 8, 6]
    assert value("tt-b", "prompt") == 10
    assert value("tt-c", "prompt") is value("tt-d", "prompt") is None
    after = [value("other", kind) for kind in ("prompt", "cached", "generated")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [20, 8, 6]


def test_no_labels_at_all_can_be_asked_for():
    TenantTokens(0).count("tt-nobody", prompt=1, cached=0, generated=0)
    assert value("tt-nobody", "prompt") is None
