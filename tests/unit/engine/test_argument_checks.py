"""Invalid engine arguments cause one-line errors that name the argument."""

import pytest

from serving.engine.argument_checks import engine_config
from serving.engine.arguments import engine_args, router_args
from serving.errors import SettingsError
from serving.settings import EngineSettings, GroupSettings, Settings


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_num_seq": 3}, r"engine\.args\.max_num_seq: .* did you mean max_num_seqs\?"),
        ({"zzz": 3}, r"engine\.args\.zzz: vLLM has no such engine argument$"),
        ({"max_num_batched_tokens": "many"}, r"engine\.args\.max_num_batched_tokens: .*integer"),
        ({"scheduling-policy": "x"}, r"engine\.args\.scheduling-policy: .*fcfs"),
        ({"compilation_config": {"nonsense": 1}}, "nonsense"),
    ],
    ids=["misspelt", "unknown", "not-a-number", "not-a-choice", "nested"],
)
def test_a_wrong_engine_argument_is_named_in_one_line(args, message):
    settings = Settings(engine=EngineSettings(args=args), group=GroupSettings(data_parallel=1))
    with pytest.raises(SettingsError, match=message) as caught:
        engine_args(settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match=message) as caught:
        router_args(settings)
    assert "\n" not in str(caught.value)


def test_what_only_the_whole_shows_is_refused_by_the_configuration():
    settings = Settings(
        engine=EngineSettings(max_model_len=10**7),
        group=GroupSettings(data_parallel=1),
    )
    with pytest.raises(SettingsError, match="max_model_len") as caught:
        engine_config(engine_args(settings))
    assert "\n" not in str(caught.value)
