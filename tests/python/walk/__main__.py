"""Calls every operation of a tenant's API with the unmodified published client.

Usage: walk BASE_URL ADMIN_PAK_FILE

The client's own models parse every answer. An answer that the client cannot parse, or that a part does not expect, ends
that part; the other parts still run. The walk fails unless every operation of the installed client has been called. It
prints one line per call and "walk: N operations" at the end.
"""

import pathlib
import sys
import traceback

import admin
import ends
import people
import stacks
import telemetry
import templates
import watching
import webhooks
import work_orders
import wrapper
from scene import Scene
from talk import CALLED, OPERATIONS

PARTS = [people, stacks, wrapper, templates, work_orders, webhooks, watching, telemetry, admin, ends]


def main():
    base_url, pak_file = sys.argv[1:]
    scene = Scene(base_url, pathlib.Path(pak_file).read_text().strip())
    failed = []
    for part in PARTS:
        print(f"-- {part.__name__}")
        try:
            part.walk(scene)
        except Exception:
            traceback.print_exc()
            failed.append(part.__name__)
    forgotten = sorted(OPERATIONS.keys() - CALLED)
    if failed or forgotten:
        sys.exit(f"failed parts: {failed}\noperations not called: {forgotten}")
    print(f"walk: {len(CALLED)} operations")


main()
