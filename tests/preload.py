"""What the command line imports late, for `tests.commandline` to fork from: that takes longer than a tiny trial."""

import stability.figures
import stability.studies.page
import stability.studies.sweep
import stability.training.trial  # noqa: F401
import tests.commandline  # noqa: F401
from stability.tracking import _import_mlflow

_import_mlflow()
import mlflow.store.tracking.sqlalchemy_store  # noqa: E402, F401
