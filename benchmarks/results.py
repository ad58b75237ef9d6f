"""Write the README's table of results from a real run: the bundled model and bicubic on Set5 and Set14, and what is in
print.

    python benchmarks/results.py --data DIR            replaces what stands between the two marks in README.md
    python benchmarks/results.py --data DIR --check    only says whether it would change anything

The marks are `<!-- results -->` and `<!-- /results -->`, each on a line of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results -->", "<!-- /results -->"
COMMAND = ["eval", "--dataset", "set5,set14", "--scales", "2,3,4,6,8", "--published", "--markdown"]


def main() -> int:
    """Score, and put the tables in place; 1 where --check finds that they differ."""
    parser = argparse.ArgumentParser(description="Write the README's table of results from a real run.")
    parser.add_argument("--data", type=Path, help="where Set5 and Set14 are; LIIF_DATA by default")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the README differs")
    arguments = parser.parse_args()
    text = arguments.readme.read_text(encoding="utf-8")
    replace(text, "")  # the marks are there before minutes are spent
    data = [] if arguments.data is None else ["--data", str(arguments.data)]
    command = [sys.executable, "-m", "liif_cli", *COMMAND, *data]
    tables = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8").stdout
    shown = "liif " + " ".join([*COMMAND, "--data", "DIR"])
    new = replace(text, f"{tables}\nWritten by `python benchmarks/results.py`, which runs `{shown}`.\n")
    if arguments.check:
        return int(new != text)
    arguments.readme.write_text(new, encoding="utf-8")
    return 0


def replace(text: str, content: str) -> str:
    """Put content between the marks. Ends the program where they are not there, each once and in order."""
    before, begin, rest = text.partition(BEGIN + "\n")
    _, end, after = rest.partition(END + "\n")
    if not begin or not end or BEGIN in after or END in before + after:
        sys.exit(f"the marks {BEGIN} and {END} must stand in the file once each, each on a line of its own")
    return f"{before}{BEGIN}\n\n{content}\n{END}\n{after}"


if __name__ == "__main__":
    sys.exit(main())
