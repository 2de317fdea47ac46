"""`hnloader` and `python -m hnloader`."""

from __future__ import annotations

import sys

from hnloader.errors import install_advice


def main() -> None:
    """Run the command line and exit with its code (docs/cli.md lists them)."""
    try:
        from hnloader.cli.app import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        sys.exit(f"The command line requires {package}. {install_advice('cli')}.")
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
