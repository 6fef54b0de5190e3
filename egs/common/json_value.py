"""Prints one value of a JSON object: json_value.py FILE KEY. Called by stages.sh and the studies of tools."""

import sys

from spear_lib.runtime.files import read_json


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 2:
        print("usage: json_value.py FILE KEY", file=sys.stderr)
        return 2
    path, key = arguments
    try:
        content = read_json(path)
    except FileNotFoundError:
        print(f"error: {path} is not there: run the stage that makes it", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if key not in content:
        print(f"error: {path} does not say its {key}; it has {', '.join(content)}", file=sys.stderr)
        return 1
    print(content[key])
    return 0


if __name__ == "__main__":
    sys.exit(main())
