"""The web process of a node: pages and a small JSON API over this node's replica."""

from __future__ import annotations

import argparse
import time
from typing import Any

from flask import Flask, Response, jsonify, render_template_string, request
from sqlalchemy.exc import IntegrityError

from litefs_celery import BrokerUnavailable, NotYetVisible, WriteTimeout

from .celeryapp import db
from .models import Region
from .repositories import UnknownRegion, regions

web = Flask(__name__)
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<title>Regions on {{ status.node }}</title>
<style>body{font:16px/1.5 system-ui;max-width:50rem;margin:2rem auto;padding:0 1rem}
td,th{padding:.2rem .8rem;text-align:left}.role{font-weight:bold}</style>
<h1>Regions on node {{ status.node }}</h1>
<p>This node is <span class="role">{{ status.role }}</span>; primary:
{{ status.primary or "not known" }}; position {{ status.position }}; {{ count }} regions.</p>
<form method="post" action="/rename"><label>Code <input name="code" required></label>
<label>New name <input name="name" required></label> <button>Rename</button></form>
{% if message %}<p role="status">{{ message }}</p>{% endif %}
<table><tr><th>Code</th><th>Name</th><th>Country</th><th>Visits</th></tr>
{% for r in rows %}<tr><td>{{ r.code }}</td><td>{{ r.name }}</td><td>{{ r.country }}</td>
<td>{{ r.visits }}</td></tr>{% endfor %}</table></html>"""


@web.get("/")
def index() -> str:
    """The first regions of this node's replica, and who is primary."""
    return _page("")


@web.post("/rename")
def rename_form() -> str:
    """Rename from the form: a write from whichever node serves the page."""
    started = time.monotonic()
    region = regions.rename(request.form["code"], request.form["name"])
    milliseconds = (time.monotonic() - started) * 1000
    return _page(f"{region.code} is now {region.name} ({milliseconds:.0f} ms)")


@web.get("/status")
def status() -> Response:
    """What this node says of itself."""
    return jsonify(db.node_status())


@web.get("/regions/<code>")
def show(code: str) -> Any:
    """One region from this node's replica."""
    region = regions.get_by(code=code)
    return ({"error": "no such region"}, 404) if region is None else jsonify(_plain(region))


@web.post("/regions")
def create() -> Any:
    """Insert one region; it is readable on this node when this returns."""
    body = request.get_json()
    fields = {key: body[key] for key in ("code", "name", "kind", "country") if key in body}
    bound = regions.insert
    if "write_id" in body:
        bound = bound.options(write_id=body["write_id"])
    return jsonify(_plain(bound(Region(**fields)))), 201


@web.post("/regions/<code>/visit")
def visit(code: str) -> Any:
    """Count a visit."""
    return jsonify({"visits": regions.visit(code)})


@web.errorhandler(UnknownRegion)
def unknown(error: UnknownRegion) -> Any:
    """404: raised on the primary, caught here."""
    return {"error": f"no region {error.args[0]}"}, 404


@web.errorhandler(IntegrityError)
def refused(error: IntegrityError) -> Any:
    """409: the database refused; nothing was changed."""
    return {"error": str(error.orig)}, 409


@web.errorhandler(WriteTimeout)
@web.errorhandler(NotYetVisible)
@web.errorhandler(BrokerUnavailable)
def unsure(error: Any) -> Any:
    """503: says what is known, and the id to ask for later."""
    return {"error": str(error), "write_id": error.write_id}, 503, {"Retry-After": "5"}


def _page(message: str) -> str:
    rows = list(regions.all())[:50]
    return render_template_string(
        PAGE, status=db.node_status(), rows=rows, count=regions.count(), message=message
    )


def _plain(region: Region) -> dict[str, Any]:
    return {
        key: getattr(region, key) for key in ("id", "code", "name", "kind", "country", "visits")
    }


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description="Serve this node's pages on loopback.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--threads", type=int, default=32)
    options = parser.parse_args()
    from waitress import serve

    serve(web, host=options.host, port=options.port, threads=options.threads)


if __name__ == "__main__":
    main()
