"""Mail sent while a request is handled goes out as the request's tenant."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
from django.core.signals import got_request_exception
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.module_loading import import_string

from mailpool import conf
from mailpool.context import forget_request_tenant, use_request_tenant


class TenantMiddleware:
    """Asks ``MAILPOOL["REQUEST_TENANT"]``, the dotted path of a callable, for the tenant.

    The callable gets the request and returns a tenant, its slug, or ``None`` where the request
    has none. It may be a coroutine function. Works under WSGI and ASGI.

    A request that fails goes on without its tenant: what Django mails to ``ADMINS`` about it, with
    settings and cookies, is the site's business and not to be found in a tenant's Sent folder.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        path = conf.get("REQUEST_TENANT")
        if not path:
            raise MiddlewareNotUsed("MAILPOOL['REQUEST_TENANT'] is not set.")
        try:
            self.tenant_of: Callable[[HttpRequest], Any] = import_string(path)
        except ImportError as error:
            raise ImproperlyConfigured(
                f"MAILPOOL['REQUEST_TENANT'] can't be imported: {type(error).__name__}."
            ) from error
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self._call_async(request)
        if iscoroutinefunction(self.tenant_of):
            raise ImproperlyConfigured("A coroutine as REQUEST_TENANT needs an ASGI server.")
        with use_request_tenant(self.tenant_of(request)):
            response: HttpResponseBase = self.get_response(request)
            return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """For what a view raises: Django may report that before it signals it."""
        forget_request_tenant()

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        if iscoroutinefunction(self.tenant_of):
            tenant = await self.tenant_of(request)
        else:
            tenant = await sync_to_async(self.tenant_of)(request)
        with use_request_tenant(tenant):
            response: HttpResponseBase = await self.get_response(request)
            return response


got_request_exception.connect(forget_request_tenant, dispatch_uid="mailpool.middleware")
