"""How long requests wait when they arrive at random: G/G/c by approximation.

The mean wait is Allen and Cunneen's: that of M/M/c times the mean of the squared coefficients of
variation of arrivals and service; M/M/c's is Sakasegawa's closed form (1977), which Whitt ("The
queueing systems GI/G/m", 1993) recommends. The chance to wait at all is taken from the same form,
and a wait, once there is one, is exponential.
"""

from __future__ import annotations

import numpy as np

from workers.perf.arrays import Floats

_NEVER = 1e9


def wait_chance(servers: Floats, utilisation: Floats) -> Floats:
    """Chance that an arriving request has to wait: u^(sqrt(2(c+1)) - 1)."""
    return utilisation ** (np.sqrt(2.0 * (servers + 1.0)) - 1.0)


def mean_wait_s(
    servers: Floats,
    utilisation: Floats,
    service_s: Floats,
    service_scv: Floats | float,
    arrival_scv: float = 1.0,
) -> Floats:
    """Mean wait in seconds.

    Args:
        servers: how many requests are served at once.
        utilisation: share of them that is busy; 1 or more waits for ever.
        service_s: how long one request is served.
        service_scv, arrival_scv: squared coefficients of variation; 1 for Poisson arrivals.
    """
    idle = np.maximum(1.0 - utilisation, 1e-12)
    variation = (service_scv + arrival_scv) / 2.0
    wait_s = wait_chance(servers, utilisation) / (servers * idle) * service_s * variation
    return np.where(utilisation < 1.0, wait_s, _NEVER)


def percentile_wait_s(
    servers: Floats,
    utilisation: Floats,
    service_s: Floats,
    service_scv: Floats | float,
    percentile: float,
    arrival_scv: float = 1.0,
) -> Floats:
    """The wait that a share `percentile` of requests does not exceed."""
    mean_s = mean_wait_s(servers, utilisation, service_s, service_scv, arrival_scv)
    chance = np.maximum(wait_chance(servers, utilisation), 1e-300)
    waiting = np.log(np.maximum(chance / (1.0 - percentile), 1.0))
    return np.where(utilisation < 1.0, mean_s / chance * waiting, _NEVER)
