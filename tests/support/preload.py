"""What the command line imports late, for `tests.support.commandline` to fork from."""

import stability.diagnosis.run_figure
import stability.reporting.page
import stability.sweeps.sweep
import stability.trials.run  # noqa: F401
import tests.support.commandline  # noqa: F401
from stability.tracking.store import import_mlflow

import_mlflow()
import mlflow.store.tracking.sqlalchemy_store  # noqa: E402, F401
