"""Waiting times and fluctuations with random arrivals. Pure functions."""

import math

from serving.planner.workload import Z90


def mean_wait(load: float, service: float, servers: int, spread: float) -> float:
    """Return the mean wait of Poisson arrivals at ``servers`` identical servers, seconds.

    Sakasegawa's approximation of M/G/k (Ann. Inst. Statist. Math. 29A, 1977):
    ``(1 + spread) / 2 * service / servers * load ** (sqrt(2 * (servers + 1)) - 1) / (1 - load)``.

    Args:
        load: Utilization of the servers; at 1 or above, the wait is infinite.
        service: Mean service time, seconds.
        servers: Number of servers.
        spread: Squared coefficient of variation of the service time.
    """
    if load >= 1:
        return math.inf
    queued = _queued(load, servers)
    return (1 + spread) / 2 * service / servers * queued / (1 - load)


def p90_wait(load: float, service: float, servers: int, spread: float) -> float:
    """Return the 90th percentile of the wait, seconds.

    Only a fraction of the arrivals waits, for an exponentially distributed time.
    """
    mean = mean_wait(load, service, servers, spread)
    queued = _queued(load, servers)
    if math.isinf(mean) or queued <= 1 - 0.9:
        return mean
    return mean / queued * math.log(queued * 10)


def p90_count(mean: float) -> float:
    """Return the 90th percentile of a Poisson-distributed number, as a normal approximation."""
    return mean + Z90 * math.sqrt(mean)


def _queued(load: float, servers: int) -> float:
    """Return the approximate share of arrivals that find all servers busy."""
    return float(load ** (math.sqrt(2 * (servers + 1)) - 1))
