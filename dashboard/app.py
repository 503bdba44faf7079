"""The server: Streamlit's ASGI application with our headers, hosts and start-up. `python -m dashboard` runs it."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from streamlit.runtime.pages_manager import PagesManager

from dashboard.errors import shown
from dashboard.security import SecurityHeaders, security_headers

__all__ = ["app", "close"]

HOSTS = ["localhost", "127.0.0.1"]

# Until main.py has run once, Streamlit takes a folder `pages` beside it for its old kind of pages, and a deep link
# would run such a file alone. st.navigation sets the same flag, too late for the first visitor.
PagesManager.uses_pages_directory = False


@asynccontextmanager
async def _lifespan(_: st.App) -> AsyncIterator[None]:
    """Import what the pages need before the first visitor comes, and keep the collector off all of it for good."""
    import dashboard.pages  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    close()


def close() -> None:
    """Let go of the store: the copy of the labels is written, the SQL console ends. Doing it twice does nothing."""
    st.cache_resource.clear()


app = st.App(
    Path(__file__).with_name("main.py"),
    lifespan=_lifespan,
    middleware=[
        Middleware(SecurityHeaders, headers=security_headers()),
        Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS),
    ],
    on_script_error=shown,
)
