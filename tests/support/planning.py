"""Models and loads shared by the planner's tests."""

from hypothesis import strategies as st

from serving.cli.doctor.presets import presets_folder, sizing
from serving.planner.accelerators import ACCELERATORS
from serving.planner.constants import VLLM
from serving.planner.gpu_memory import ModelFigures
from serving.planner.group import Group, Objective, Role
from serving.planner.plans import Question
from serving.planner.roofline import Limit, StepModel
from serving.planner.workload import Workload

MODELS = {
    name: ModelFigures.from_mapping(figures)
    for name, figures in sizing(presets_folder())["models"].items()
}
R1 = MODELS["deepseek-r1"]
QWEN = MODELS["qwen3-30b-a3b"]
LOAD = Workload(10.0, 2000, 500)

models = st.sampled_from([R1, QWEN, MODELS["deepseek-v2-lite"]])
gpus = st.sampled_from([gpu for gpu in ACCELERATORS.values() if not gpu.cpu])
groups = st.builds(
    lambda model, gpu, data, tensor, role, chunk, drafts: Group(
        StepModel(model, gpu, data, tensor, VLLM), role, chunk, 200.0, Limit.KV, drafts, 0.85
    ),
    models,
    gpus,
    st.sampled_from([2, 8, 16]),
    st.sampled_from([1, 2]),
    st.sampled_from(Role),
    st.sampled_from([256, 2048, 8192]),
    st.sampled_from([0, 1]),
)
loads = st.builds(
    Workload,
    st.floats(0.1, 100),
    st.floats(10, 8000),
    st.floats(2, 2000),
    st.floats(0, 0.9),
    st.floats(0, 2),
    st.floats(0, 2),
)


def question(**changes: object) -> Question:
    """Return the question of R1 on H200 for 10 requests/s, with changes."""
    known = {
        "model": R1, "model_name": "deepseek-r1", "gpu": ACCELERATORS["h200"], "load": LOAD,
        "objective": Objective(), "known": VLLM,
    }  # fmt: skip
    return Question(**(known | changes))  # type: ignore[arg-type]
