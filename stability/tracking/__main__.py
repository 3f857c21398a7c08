"""`python -m stability.tracking FOLDER` is the same command as `python -m stability.send FOLDER`."""

import runpy

runpy.run_module("stability.send", run_name="__main__", alter_sys=True)
