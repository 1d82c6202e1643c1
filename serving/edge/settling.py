"""What a router does once, when everything is imported and built and nothing is served yet."""

import resource

from vllm import envs

from serving import gc_tuning

FILES = 65536
"""Open files that a router asks for."""


def settle_down() -> None:
    """Make what is the same for every request cheap, and allow for many clients."""
    envs.enable_envs_cache()  # vLLM reads some twenty variables for a request
    gc_tuning.keep_always()
    allow_many_connections()


def allow_many_connections() -> None:
    """Raise the limit of open files, often 1024, to what the system allows.

    A client's connection takes one; past the limit new ones would be refused.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
