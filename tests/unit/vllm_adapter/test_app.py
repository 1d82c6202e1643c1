from types import SimpleNamespace

import pytest

from serving.vllm_adapter.app import install_handlers


def test_handlers_of_an_unknown_class_are_refused():
    with pytest.raises(TypeError, match="openai_serving_chat"):
        install_handlers(SimpleNamespace(openai_serving_chat=object()))
