"""“Import and export”: many tenants at once, with the same code as the commands.

The uploaded file, which has passwords, is in memory only while the page is made. It is neither
kept nor sent back: to have it imported it is chosen again, and has to be the one of the report.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.core.files.uploadhandler import MemoryFileUploadHandler
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.crypto import constant_time_compare, salted_hmac
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.csrf import csrf_protect

from mailpool import conf, transfer
from mailpool.admin.acting import as_user
from mailpool.admin.moving import FIRST_THERE
from mailpool.admin.moving import PERMISSION as MOVE
from mailpool.admin.secrecy import SecretiveAdmin
from mailpool.models import Credential
from mailpool.secrecy import hide_submitted
from mailpool.secret import SecretBytes
from mailpool.transfer import Plan, Problem, UnusableFile
from mailpool.transfer.columns import owns_tenants
from mailpool.transfer.files import FORMATS, MAX_PROBLEMS

# What a browser may upload; larger files are the command's.
MAX_BYTES = 10 * 1024 * 1024

# Of these, with a sender or two, the import is done well within what gunicorn gives a request: 30
# seconds. Past that a browser would get an error that says nothing.
MAX_ROWS = 2000

# Items whose differences are shown.
SHOWN = 200

_MODELS = ("mailserver", "credential", "sender")


class _InMemory(MemoryFileUploadHandler):
    """Django would put a large file on the disk, for the time of the request."""

    def handle_raw_input(self, input_data: Any, META: Any, content_length: int, *rest: Any) -> None:
        self.activated = content_length <= MAX_BYTES


class UploadForm(forms.Form):
    """The file."""

    file = forms.FileField(
        label=_("File"),
        help_text=_(
            "CSV (UTF-8) or JSON, with tenants, mail servers, accounts and senders: up to 10 MB "
            "and 2,000 rows."
        ),
        error_messages={
            "required": _(
                "Choose a file of at most 10 MB; larger ones are for the command mailpool_import."
            )
        },
    )


class TransferPage(SecretiveAdmin):
    """The page, for the admin of credentials."""

    change_list_template = "admin/mailpool/credential_list.html"

    def may_import(self, request: HttpRequest) -> bool:
        return request.user.has_perms(_permissions("add", "change"))

    def may_export(self, request: HttpRequest) -> bool:
        return request.user.has_perms(_permissions("view"))

    def get_urls(self) -> list[URLPattern]:
        page = self.admin_site.admin_view(_transfer_view(self))
        return [path("transfer/", page, name="mailpool_transfer"), *super().get_urls()]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> Any:
        context = {"may_transfer": self.may_import(request) or self.may_export(request)}
        return super().changelist_view(request, {**context, **(extra_context or {})})

    @as_user
    def transfer_view(self, request: HttpRequest) -> HttpResponseBase:
        """Report on a file, import it if it was reported on, or hand out an export."""
        hide_submitted(request)
        if not (self.may_import(request) or self.may_export(request)):
            raise PermissionDenied
        if "export" in request.POST:
            return self._export(request)
        sent = (request.POST, request.FILES) if request.method == "POST" else ()
        form = UploadForm(*sent)
        context: dict[str, Any] = {"form": form, "may_import": self.may_import(request)}
        if request.method == "POST":
            if not self.may_import(request):
                raise PermissionDenied
            if form.is_valid():
                plan, token = _look(request, form.cleaned_data["file"])
                seen = request.POST.get("seen", "")
                if seen and not plan.problems and constant_time_compare(seen, token):
                    written = transfer.apply(plan, atomic=True)
                    if not plan.problems:
                        return self._done(request, len(written))
                context |= {"plan": plan, "token": token, "is_other": bool(seen)}
                context["problems"] = plan.problems[:MAX_PROBLEMS]
                context["more_problems"] = len(plan.problems[MAX_PROBLEMS:])
                context |= {"items": plan.usable[:SHOWN], "more": len(plan.usable[SHOWN:])}
        request.current_app = self.admin_site.name
        context |= {
            **self.admin_site.each_context(request),
            "title": _("Import and export"),
            "opts": self.opts,
            "media": self.media,
            "may_export": self.may_export(request),
            "formats": FORMATS,
        }
        return TransferResponse(request, "admin/mailpool/transfer.html", context)

    def _export(self, request: HttpRequest) -> HttpResponse:
        if not self.may_export(request):
            raise PermissionDenied
        format = "json" if request.POST["export"] == "json" else "csv"
        text = transfer.write(transfer.export_rows(), format)
        # Without the mark spreadsheets do not know the encoding of CSV.
        data = text.encode("utf-8-sig" if format == "csv" else "utf-8")
        kind = "text/csv; charset=utf-8" if format == "csv" else "application/json"
        disposition = f'attachment; filename="mailpool.{format}"'
        return HttpResponse(
            data,
            content_type=kind,
            headers={"Content-Disposition": disposition, "Cache-Control": "no-store"},
        )

    def _done(self, request: HttpRequest, count: int) -> HttpResponseRedirect:
        text = gettext("%(count)d tenants, servers and accounts were created or changed.")
        self.message_user(request, text % {"count": count}, messages.SUCCESS)
        return HttpResponseRedirect(reverse(f"{self.admin_site.name}:mailpool_transfer"))


class TransferResponse(TemplateResponse):
    """The report, which no cache keeps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.headers["Cache-Control"] = "no-store"


def _transfer_view(admin: TransferPage) -> Any:
    """The view, protected as all of the admin, but with the file in memory: how uploads are taken
    has to be said before anybody, as the middleware does, looks for the token in the form."""
    protected = csrf_protect(admin.transfer_view)

    def view(request: HttpRequest) -> Any:
        request.upload_handlers = [_InMemory(request)]
        return protected(request)

    view.csrf_exempt = True  # type: ignore[attr-defined]  # by the middleware, not by itself
    return view


def _permissions(*verbs: str) -> list[str]:
    found = [f"mailpool.{verb}_{name}" for verb in verbs for name in _MODELS]
    app, _dot, model = conf.tenant_model().lower().partition(".")
    # A project's own tenants are looked up by slug, and not written.
    found += [f"{app}.{verb}_{model}" for verb in (verbs if owns_tenants() else ("view",))]
    return found


def _look(request: HttpRequest, upload: Any) -> tuple[Plan, str]:
    """What the file would do, and a token for having seen that."""
    data = SecretBytes(upload.read())
    format = "json" if str(upload.name).lower().endswith(".json") else "csv"
    try:
        rows, problems = transfer.read(data, format, most=MAX_ROWS)
    except UnusableFile as error:
        return Plan([], error.problems), ""
    if not request.user.has_perm("mailpool.change_oauthclient"):
        text = gettext("To give accounts an OAuth client you need the permission to change it.")
        problems += [
            Problem(row.line, "oauth_client", text) for row in rows if "oauth_client" in row.cells
        ]
    plan = transfer.make_plan(rows, problems, compares_secrets=False)
    if not request.user.has_perm(MOVE):
        plan.problems += _first_of_their_client(plan)
    shown = [f"{item.title}\n{list(map(str, item.differences))}" for item in plan.items]
    # Of file, person and what was shown. Keyed, so that nobody can guess passwords by it.
    value = "\n".join([sha256(data).hexdigest(), str(request.user.pk), *shown])
    return plan, salted_hmac("mailpool.admin.transfer", value, algorithm="sha256").hexdigest()


def _first_of_their_client(plan: Plan) -> list[Problem]:
    """The new accounts that would take an application's tokens to where none are told yet."""
    is_told: dict[tuple[Any, ...], bool] = {}
    found = []
    for item in plan.usable:
        row = item.row
        if not (isinstance(row, Credential) and item.is_new and row.is_by_application):
            continue
        client, server = row.oauth_client, row.server
        key = (client, server.host, server.port, server.security)
        if key not in is_told:
            is_told[key] = client is not None and client.is_used_at(server)
        if not is_told[key]:
            found.append(Problem(item.said.line_of("server"), "server", str(FIRST_THERE)))
    return found
