"""The console command `stability`, and `python -m stability`: one command for the seven doors."""

import argparse
import sys
from importlib import import_module

_COMMANDS = {
    "train": "train one trial, or with --multirun a sweep of trials",
    "explain": "find the fewest settings that make one training fail where another works",
    "repair": "find the smallest change of settings that mends a failed training",
    "evaluate": "measure a trained decoder by session, and write its logits for a language model",
    "report": "write what a study found into one page",
    "diagnose": "say what became of a training, from its log",
    "send": "send to MLflow what it does not have yet",
}


def main() -> int:
    """Run the command line, `sys.argv`.

    Returns:
        The exit status of the command.
    """
    parser = argparse.ArgumentParser(
        prog="stability",
        description="Find out, by controlled experiment, why a training run blew up or never got going.",
        epilog="`stability COMMAND --help` explains a command. Each is also a module: `python -m stability.train`.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    command = parser.parse_args(sys.argv[1:2]).command  # the rest is for the command
    sys.argv[:2] = [f"stability {command}"]
    return import_module(f"stability.{command}").main() or 0


if __name__ == "__main__":
    sys.exit(main())
