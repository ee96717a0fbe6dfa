"""One page: choose a tenant, write a message, send it, see what became of it."""

from __future__ import annotations

from contextlib import nullcontext

from django import forms
from django.core.mail import EmailMessage
from django.shortcuts import render

import mailpool
from demo import web
from mailpool.exceptions import MailpoolError
from mailpool.models import Credential, Tenant
from mailpool.verification import describe_error, explain


class MessageForm(forms.Form):
    tenant = forms.ModelChoiceField(
        Tenant.objects.all(), required=False, empty_label="None (the site's own account)"
    )
    to = forms.EmailField(label="To", initial="customer@customers.example")
    subject = forms.CharField(max_length=200, initial="Hello")
    body = forms.CharField(
        label="Message", initial="Hello!", widget=forms.Textarea(attrs={"rows": 4})
    )


def compose(request):
    form = MessageForm(request.POST or None, initial={"tenant": Tenant.objects.first()})
    context = {"form": form}
    if request.method == "POST" and form.is_valid():
        context.update(send(**form.cleaned_data))
    folders = web.host.sent if web.host else {}
    context["folders"] = [
        (login.title(), sorted(folders[login].items())) for login in sorted(folders)
    ]
    context["arrived"] = list(web.host.arrived) if web.host else []
    context["stats"] = mailpool.stats()
    return render(request, "demo/compose.html", context)


def send(tenant, to, subject, body):
    """Send it as any Django code does, and describe the outcome."""
    message = EmailMessage(subject, body, to=[to])
    with mailpool.use_tenant(tenant) if tenant else nullcontext():
        try:
            message.send()
        except (MailpoolError, OSError, ValueError) as error:
            failure = {"said": describe_error(error), "advice": explain(error)}
        else:
            failure = {}
    result = message.mailpool_result
    credential = Credential.objects.filter(pk=result.credential_id).first()
    return {"result": result, "credential": credential, **failure}
