"""Lets `hydra/sweeper=bisection` be chosen in any Hydra app. Hydra imports all modules in `hydra_plugins` at its start.

The sweeper itself is in `_stability_bisection`, which Hydra skips because of its name: it takes longer to import. The
callback of `stability.hydra` registers it.
"""

from hydra.core.config_store import ConfigStore

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="bisection",
    node={
        "_target_": "hydra_plugins._stability_bisection.AppBisection",
        "setting": None,  # the dotted name of a number
        "start": None,  # the first value; None: that of the app's configuration
        "lowest": None,  # None: four decades below the start
        "highest": None,  # None: four decades above the start
        "tolerance": 1.35,  # a search ends when the upper end of its bracket is at most this many times the lower end
        "params": None,
    },
    provider="stability",
)
