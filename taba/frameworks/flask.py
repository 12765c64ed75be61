"""For Flask.

app = Flask(__name__)
instrument(app)
"""

from __future__ import annotations

from typing import Any

import flask

from taba.frameworks import wsgi

ROUTE = "taba.route"  # in the environ of a request whose view raised: until then Flask has forgotten it


def instrument(app: flask.Flask, *, name: str = "http") -> flask.Flask:
    """Record what the application serves, by its rules such as /users/<int:id>, and the exceptions that its views raise."""
    middleware = wsgi.Middleware(app.wsgi_app, route, name=name)
    app.wsgi_app = middleware  # type: ignore[method-assign]
    serving = middleware._serving

    def failed(sender: Any, exception: BaseException, **rest: Any) -> None:
        environ = flask.request.environ
        found = route(environ)
        environ[ROUTE] = found
        propagates = app.config["PROPAGATE_EXCEPTIONS"]
        if not (app.testing or app.debug if propagates is None else propagates):  # else the middleware sees it
            serving.fail(found, exception)

    flask.got_request_exception.connect(failed, app, weak=False)
    return app


def route(environ: dict[str, Any]) -> str | None:
    """The rule that took a request, as the application wrote it; None where none did."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    found: str | None = rule.rule if rule is not None else environ.get(ROUTE)
    return found
