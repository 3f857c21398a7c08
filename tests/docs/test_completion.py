"""The tab completion that the docs give, in a real shell."""

import subprocess
import sys

from tests.support.pages import DOCS, code_with


def test_the_shell_completes_commands_groups_and_options() -> None:
    snippet = code_with(DOCS / "reference/command-line.md", "complete -o nospace", "bash")

    def completed(*words: str) -> list[str]:
        script = (
            f'stability() {{ "{sys.executable}" -m stability "$@"; }}\n{snippet}\n'
            f"COMP_LINE='{' '.join(words)}' COMP_WORDS=({' '.join(map(repr, words))}) COMP_CWORD={len(words) - 1}\n"
            'export COMP_LINE; _stability; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        assert shell.stderr == ""
        return shell.stdout.split()

    assert completed("stability", "re") == ["repair", "report"]
    assert completed("stability", "train", "optimizer=") == ["optimizer=adam_default", "optimizer=official"]
    assert completed("stability", "train", "experiment=test") == [
        "experiment=test1",
        "experiment=test2",
        "experiment=test3",
    ]
