"""Feeds the handler: one JSON event on standard input, its answer on standard output."""

import json
import sys

from handler import handle


def main():
    try:
        event = json.load(sys.stdin)
        answer = handle(event)
    except ValueError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    json.dump(answer, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
