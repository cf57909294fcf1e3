"""Gives generated requests the ids of objects that are there, so that they get behind the 404s.

schemathesis loads it (`xtask api`). But for enrolment nothing here knows a path of ours: the ids of `{thing}` in
`/a/{tenant}/things/{thing}` come from the list `/a/{tenant}/things`. A request whose path is wrong on purpose keeps
it. Of each list the first half is kept from what deletes, so that there is always something to read. An enrolment
gets a fresh claim, a renewal shows the certificate of a device that was enrolled when the checks began, in a tenant that
they do not reach: a certificate younger than a minute is not renewed. Both ask with one signing request.
At the end it tells which operations never answered 2xx: their good answers were not looked at.
"""

import atexit
import os
import random
import re

import requests
import schemathesis
import urllib3
from schemathesis.core.parameters import ParameterLocation

BASE = os.environ["MUSTER_API_URL"]
SANDBOX = os.environ["MUSTER_API_TENANT"]
ENROLMENT = os.environ["MUSTER_API_ENROLL"]
CLAIM = os.environ["MUSTER_API_CLAIM"]
HEADERS = {"Authorization": "Bearer " + os.environ["MUSTER_API_TOKEN"]}
# Requests between two looks at a list.
LOOK_EVERY = 25

chance = random.Random(int(os.environ["MUSTER_API_SEED"]))
lists = {}
asked = set()
answered = set()


# The listener's certificate comes from an authority that only the claim names.
urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


def text(path):
    """A file's text; none where there is no such file."""
    if not os.path.exists(path):
        return None
    with open(path, encoding="ascii") as file:
        return file.read()


def secret(claim):
    return claim.split(":")[3]


def fresh_claim():
    answer = requests.post(BASE + "/api/v1/tenants/" + SANDBOX + "/claims", headers=HEADERS, json={}, timeout=30)
    answer.raise_for_status()
    return answer.json()["claim"]


def enrol():
    """Enrols the device whose certificate is renewed later; once, for all passes."""
    body = {"claim_token": secret(CLAIM), "csr_pem": CSR}
    answer = requests.post(ENROLMENT + "/api/v1/enroll", json=body, verify=False, timeout=30)
    answer.raise_for_status()
    with open("device.pem", "w", encoding="ascii") as file:
        file.write(answer.json()["certificate_pem"])


CSR = text("device.csr")
if CSR and not text("device.pem"):
    enrol()


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


def choose(found, deletes):
    half = len(found) // 2
    rest = found[half:] if deletes else found[:half]
    return chance.choice(rest or found)


def let_in(case, kwargs):
    """Lets a request to the enrolment listener succeed, unless its body is wrong on purpose."""
    path = case.operation.path
    if path == "/api/v1/renew":
        kwargs["cert"] = ("device.pem", "device.key")
    if not isinstance(case.body, dict) or (case.meta and case.meta.is_negative_at(ParameterLocation.BODY)):
        return
    body = {**case.body, "csr_pem": CSR}
    if path == "/api/v1/enroll":
        body["claim_token"] = secret(fresh_claim())
        # Names that were given before are taken.
        if chance.random() < 0.5:
            body.pop("device_name", None)
    case.body = body


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
    if CSR and case.operation.path in ("/api/v1/enroll", "/api/v1/renew"):
        let_in(case, kwargs)
    if not case.path_parameters or (meta and meta.is_negative_at(ParameterLocation.PATH)):
        return
    path = case.operation.path
    deletes = case.method.upper() == "DELETE" or path.endswith("/erase")
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
            case.path_parameters[name] = choose(found, deletes)
