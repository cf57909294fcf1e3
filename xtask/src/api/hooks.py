"""Gives generated requests the ids of objects that are there, so that they get behind the 404s.

schemathesis loads it (`xtask api`). Nothing here knows a path of ours: the ids of `{thing}` in
`/a/{tenant}/things/{thing}` come from the list `/a/{tenant}/things`. A request whose path is wrong on purpose keeps
it. Of each list the first half is kept from DELETE, so that there is always something to read.
At the end it tells which operations never answered 2xx: their good answers were not looked at.
"""

import atexit
import os
import random
import re

import requests
import schemathesis
from schemathesis.core.parameters import ParameterLocation

BASE = os.environ["MUSTER_API_URL"]
SANDBOX = os.environ["MUSTER_API_TENANT"]
HEADERS = {"Authorization": "Bearer " + os.environ["MUSTER_API_TOKEN"]}
# Requests between two looks at a list.
LOOK_EVERY = 25

chance = random.Random(int(os.environ["MUSTER_API_SEED"]))
lists = {}
asked = set()
answered = set()


def ids(collection, name):
    """The ids that a list has now; none where there is no such list."""
    looked, found = lists.get(collection, (LOOK_EVERY, []))
    if looked >= LOOK_EVERY:
        found = look(collection, name)
        looked = 0
    lists[collection] = (looked + 1, found)
    return found


def look(collection, name):
    answer = requests.get(BASE + collection, headers=HEADERS, timeout=30)
    if answer.status_code != 200 or "json" not in answer.headers.get("content-type", ""):
        return []
    body = answer.json()
    items = body.get("items") if isinstance(body, dict) else None
    rows = [row for row in items or [] if isinstance(row, dict)]
    keys = ("id", name, name + "_id")
    return sorted(str(next(row[key] for key in keys if key in row)) for row in rows if any(k in row for k in keys))


def choose(found, method):
    half = len(found) // 2
    rest = found[half:] if method.upper() == "DELETE" else found[:half]
    return chance.choice(rest or found)


@schemathesis.hook
def after_call(context, case, response):
    asked.add(case.operation.label)
    if 200 <= response.status_code < 300:
        answered.add(case.operation.label)


@atexit.register
def tell():
    print("answered 2xx: %d of %d operations" % (len(answered), len(asked)))
    for label in sorted(asked - answered):
        print("  never: " + label)


@schemathesis.hook
def before_call(context, case, kwargs):
    meta = case.meta
    if not case.path_parameters or (meta and meta.is_negative_at(ParameterLocation.PATH)):
        return
    path = case.operation.path
    for part in re.finditer(r"\{([^}]+)\}", path):
        name = part.group(1)
        if name == "tenant":
            case.path_parameters[name] = SANDBOX
            continue
        # The list stands right before the id; where ids of other lists stand between, they are filled in by now.
        collection = path[: part.start()].rstrip("/")
        for known, value in case.path_parameters.items():
            collection = collection.replace("{" + known + "}", str(value))
        found = ids(collection, name)
        if found and chance.random() < 0.9:
            case.path_parameters[name] = choose(found, case.method)
