"""`python -m dashboard [--store DIR] [--port N] [--user NAME]`: serve the pages on 127.0.0.1 until Ctrl-C."""

import argparse
import contextlib
import os
import socket
import sys

ADDRESS = "127.0.0.1"


def main() -> int:
    """Serve. Exit code 1 where the port is taken."""
    given = _arguments()
    if not _is_free(given.port):
        sys.stderr.write(
            f"port {given.port} of {ADDRESS} is taken, perhaps by another dashboard; give a free one with --port\n"
        )
        return 1
    for name, value in (("ALMANAC_STORE", given.store), ("ALMANAC_USER", given.user)):
        if value:
            os.environ[name] = value
    from dashboard.app import app, close  # imports Streamlit: only when there is something to serve

    sys.stdout.write(f"SAE Almanac: http://{ADDRESS}:{given.port}   (stop with Ctrl-C)\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        app.run(config={"server.address": ADDRESS, "server.port": given.port})
    close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and DuckDB's binding complains at an ordinary exit


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="almanac dashboard", description=__doc__)
    parser.add_argument("--store", help="folder of the store [default: ALMANAC_STORE, else ./almanac]")
    parser.add_argument("--port", type=int, default=8501, help="[default: 8501]")
    parser.add_argument("--user", help="who labels [default: ALMANAC_USER, else your login name]")
    return parser.parse_args()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
