"""Break the combine of the experts' results in this process."""


def register() -> None:
    from vllm.distributed.device_communicators.all2all import AgRsAll2AllManager

    if getattr(AgRsAll2AllManager, "broken", False):
        return
    combine, combine_into_output = (
        AgRsAll2AllManager.combine,
        AgRsAll2AllManager.combine_into_output,
    )

    def broken_combine(self, *args, **kwargs):
        return combine(self, *args, **kwargs) * 0.5

    def broken_combine_into_output(self, hidden_states, output, *args, **kwargs):
        return combine_into_output(self, hidden_states, output, *args, **kwargs).mul_(0.5)

    AgRsAll2AllManager.combine = broken_combine
    AgRsAll2AllManager.combine_into_output = broken_combine_into_output
    AgRsAll2AllManager.broken = True
