"""Bundles at rest: a directory or an object store, and a verified copy on this machine.

:func:`push` publishes a bundle under ``STORE/<version>/``, its manifest last, so that whoever
finds a manifest finds the whole bundle. :func:`fetch` copies one into a cache directory keyed
by version, and hashes every file before it gets its name there.

A location is a path, or a URL of a scheme that fsspec knows (``s3://``, ``gs://``, ``file://``);
URLs need the extra ``store``.
"""

from mach.store.locations import Location, open_location
from mach.store.transfer import fetch, link, push

__all__ = ["Location", "fetch", "link", "open_location", "push"]
