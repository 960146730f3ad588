"""Purges a page by a client of PyPI: `purge.py wagtail|plone CACHE URL`, where CACHE is the URL of the sidecar."""

import sys
import types
from urllib.parse import urlsplit


def wagtail(cache, url):
    from wagtail.contrib.frontend_cache.backends.http import HTTPBackend

    HTTPBackend({"LOCATION": cache}).purge(url)


def plone(cache, url):
    # Zope itself, which the purger asks only whether it debugs.
    app = types.ModuleType("App")
    app.config = types.ModuleType("App.config")
    app.config.getConfiguration = lambda: types.SimpleNamespace(debug_mode=False)
    sys.modules.update({"App": app, "App.config": app.config})
    from plone.cachepurging.purger import DefaultPurger

    parts = urlsplit(url)
    target = cache + parts.path + ("?" + parts.query if parts.query else "")
    status, _, error = DefaultPurger().purgeSync(target)
    if status != 200:
        sys.exit(f"{status} {error}")


if __name__ == "__main__":
    client, cache, url = sys.argv[1:]
    {"wagtail": wagtail, "plone": plone}[client](cache, url)
