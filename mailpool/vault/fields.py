"""A model field that is encrypted in the database and in memory."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from django import forms
from django.core.exceptions import FieldError
from django.db import models
from django.db.models.lookups import Exact
from django.db.models.query_utils import DeferredAttribute
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from mailpool.exceptions import SecretError
from mailpool.secret import Secret
from mailpool.text import is_unicode
from mailpool.vault.keyring import Sealed
from mailpool.vault.keys import get_keyring
from mailpool.vault.written import Written


class _Decrypting(property):
    """``instance.password``: decrypts when read; what is set is encrypted when it is saved.

    A ``property``, because Django's model constructor takes those as keywords.
    """


class _Stored(DeferredAttribute):
    """``instance.password_ciphertext``: what the database holds, and nothing else.

    A secret that was set and is not in the database for good is kept elsewhere on the instance,
    so that signals, serializers and whoever else reads the model's fields never meet plain text.
    Data that comes from the database takes its place.
    """

    field: EncryptedTextField

    def __get__(self, instance: Any, cls: Any = None) -> Any:
        if instance is None or self.field.attname in instance.__dict__:
            return super().__get__(instance, cls)
        # Not loaded yet, so it is loaded now; that is no reason to forget what was set.
        held = instance.__dict__.get(self.field.pending_attname)
        value = super().__get__(instance, cls)
        if held is not None:
            instance.__dict__[self.field.pending_attname] = held
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        # Validation sets each field to the very value that it has.
        if value is not instance.__dict__.get(self.field.attname, self):
            instance.__dict__.pop(self.field.pending_attname, None)
        instance.__dict__[self.field.attname] = value


class SecretInput(forms.PasswordInput):
    """A password input that never renders a value and does not ask browsers to fill one in."""

    def __init__(self, attrs: dict[str, Any] | None = None) -> None:
        super().__init__(attrs={"autocomplete": "new-password", **(attrs or {})})


class SecretTextarea(forms.Textarea):
    """The same for several lines, as keys have them; browsers do not send it to a spell checker."""

    def __init__(self, attrs: dict[str, Any] | None = None) -> None:
        quiet = {"autocomplete": "off", "autocapitalize": "off", "spellcheck": "false", "rows": 5}
        super().__init__(attrs={**quiet, **(attrs or {})})

    def format_value(self, value: Any) -> None:
        """Nothing, whatever it is."""


class SecretFormField(forms.CharField):
    """Write-only: an empty input means that the stored secret stays."""

    widget = SecretInput

    def __init__(self, **kwargs: Any) -> None:
        # Blanks at the ends may well be part of a password.
        super().__init__(**{**kwargs, "strip": False})

    def clean(self, value: Any) -> Secret:
        secret = Secret(super().clean(value))
        if not is_unicode(secret):
            raise forms.ValidationError(_("There is half a character in it. Enter it again."))
        return secret

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(data)

    def prepare_value(self, value: Any) -> None:
        """Nothing of the stored value ever reaches the widget."""


class _SealedExact(Exact):
    """``=`` between ciphertexts only: what key rotation needs for its compare and swap."""

    def get_prep_lookup(self) -> Any:
        if not isinstance(self.rhs, Sealed):
            raise _no_lookups(self.lhs.output_field)
        return str(self.rhs)


def _no_lookups(field: Any) -> FieldError:
    return FieldError(f"{field.name!r} is encrypted: rows can't be filtered or compared by it.")


def _value(instance: Any, lookup: str) -> str | None:
    """The value that *lookup* leads to, the same however it is spelled in memory."""
    *path, name = lookup.split("__")
    for step in path:
        instance = getattr(instance, step)
        if instance is None:  # a relation that leads nowhere
            return None
    field = instance._meta.get_field(name)
    value = getattr(instance, name)
    # A key may have been given as text, and a port.
    value = getattr(field, "target_field", field).to_python(value)
    return None if value is None else str(value)


def encrypted_fields_of(row: models.Model) -> list[EncryptedTextField]:
    return [field for field in row._meta.fields if isinstance(field, EncryptedTextField)]


_CREATED = "_created_with_secrets"


def note_written(
    row: models.Model, using: str, names: Collection[str] | None = None, *, is_new: bool
) -> None:
    """*row* has been written with the secrets among its fields *names*, by default all of them."""
    if is_new:
        row.__dict__[_CREATED] = Written(Secret(), using)
    for field in encrypted_fields_of(row):
        if names is None or {field.name, field.attname} & set(names):
            field.note_written(row, using)


def forget_undone(row: models.Model) -> None:
    """Have *row* be a new one again, if its creation was rolled back."""
    created = row.__dict__.get(_CREATED)
    if isinstance(created, Written) and created.is_undone:
        row._state.adding = True


class EncryptedQuerySet(models.QuerySet[Any]):
    """For models with encrypted fields: ``update()`` writes ciphertext into them or nothing.

    An expression would go to the database past the field, as plain text. To be the model's base
    manager as well, since relations use that one.
    """

    def bulk_create(self, objs: Any, *args: Any, **kwargs: Any) -> list[Any]:
        for name in kwargs.get("update_fields") or ():
            field = self.model._meta.get_field(name)
            if isinstance(field, EncryptedTextField):
                # What it would write is bound to the new row and opens in no other one.
                raise field.not_by_update()
        rows = list(objs)
        made = super().bulk_create(rows, *args, **kwargs)
        for row in rows:
            note_written(row, self.db, is_new=True)
        return made

    def update(self, **kwargs: Any) -> int:
        for name, value in kwargs.items():
            field = self.model._meta.get_field(name)
            if isinstance(field, EncryptedTextField) and not isinstance(value, (Sealed, str)):
                raise field.not_by_update()
        return super().update(**kwargs)


class EncryptedTextField(models.TextField):  # type: ignore[type-arg]
    """Text under AES-256-GCM, bound to model, field and row, and to what it is for.

    ``instance.password`` is the plain text as a ``Secret`` (decrypted when it is read;
    ``SecretError`` if it does not open), ``instance.password_ciphertext`` what is stored. As with
    a foreign key, name and attribute differ; the database column has the field's name. The row's
    primary key has to be known before it is saved, as UUID keys are.

    What is set is encrypted when the row is saved: until then the row may still get another key,
    as the admin does with new rows that have inlines. It stays on the instance until the
    transaction is committed, and is written again by a ``save()`` that follows a rollback.

    *changed_at* names a ``DateTimeField`` that is to hold when the secret was last set.
    *bound_to* names what the secret was entered for, as lookups (``server__host``): where one of
    these values is another one than when the row was saved with the secret, it does not open.
    """

    descriptor_class = _Stored

    def __init__(
        self,
        *args: Any,
        changed_at: str | None = None,
        bound_to: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        self.changed_at = changed_at
        self.bound_to = tuple(bound_to)
        super().__init__(*args, **kwargs)

    def deconstruct(self) -> tuple[str, str, Any, Any]:
        name, path, args, kwargs = super().deconstruct()
        if self.changed_at:
            kwargs["changed_at"] = self.changed_at
        if self.bound_to:
            kwargs["bound_to"] = self.bound_to
        return name, path, args, kwargs

    def get_attname(self) -> str:
        return f"{self.name}_ciphertext"

    @property
    def pending_attname(self) -> str:
        """Where an instance keeps a secret that is not saved yet, or ``Written`` after that."""
        return f"_{self.name}_pending"

    def get_attname_column(self) -> tuple[str, str]:
        return self.get_attname(), self.db_column or self.name

    def contribute_to_class(self, cls: Any, name: str, private_only: bool = False) -> None:
        super().contribute_to_class(cls, name, private_only)
        setattr(cls, name, _Decrypting(self.open, self._write))

    def place(self, instance: Any) -> str:
        """Where a secret of *instance* belongs, and what errors call it."""
        return f"{instance._meta.label_lower}.{self.name}:{instance.pk}"

    def use(self, instance: Any) -> str:
        """What a secret of *instance* is for: the values of *bound_to*, in a form of their own."""
        return json.dumps([_value(instance, lookup) for lookup in self.bound_to])

    def seal(self, instance: Any, secret: str) -> Sealed:
        """*secret* as the database is to hold it for *instance*."""
        return get_keyring().seal(secret, self.place(instance), self.use(instance))

    def pending(self, instance: Any) -> str | None:
        """What was set on *instance* and is not stored, or not any more; ``None``: nothing."""
        held: str | Written | None = instance.__dict__.get(self.pending_attname)
        if isinstance(held, Written):
            return held.secret if held.is_undone else None
        return held

    def is_pending(self, instance: Any) -> bool:
        """Whether *instance*'s secret was set and is not saved yet."""
        return self.pending(instance) is not None

    def note_written(self, instance: Any, using: str) -> None:
        """A secret that was set on *instance* has been written, in the transaction on *using*."""
        pending = self.pending(instance)
        if pending is not None:
            instance.__dict__[self.pending_attname] = Written(Secret(pending), using)

    def is_set(self, instance: Any) -> bool:
        """Whether *instance* has a secret, stored or pending; nothing is decrypted."""
        pending = self.pending(instance)
        return bool(getattr(instance, self.attname) if pending is None else pending)

    def open(self, instance: Any) -> Secret:
        """The plain text of *instance*'s secret; ``SecretError`` if it does not open."""
        pending = self.pending(instance)
        if pending is not None:
            return Secret(pending)
        stored = getattr(instance, self.attname)
        if not stored:
            return Secret("")
        names = [lookup.rpartition("__")[2].removesuffix("_id") for lookup in self.bound_to]
        return get_keyring(Sealed(stored).key_id).open(
            stored,
            self.place(instance),
            self.use(instance),
            meaning=" or ".join(names) or "use",
        )

    def _write(self, instance: Any, value: str | None) -> None:
        if isinstance(value, Sealed):
            setattr(instance, self.attname, value)
            return
        # That there is none is no secret, and may be in a pickle.
        instance.__dict__[self.pending_attname] = Secret(value) if value else ""
        if self.changed_at:
            setattr(instance, self.changed_at, timezone.now() if value else None)

    def pre_save(self, model_instance: Any, add: bool) -> Any:
        if self.is_pending(model_instance):
            secret = self.open(model_instance)
            if secret and model_instance.pk is None:
                raise SecretError(f"{self.name!r} needs a row that has its key before it is saved.")
            sealed = self.seal(model_instance, secret) if secret else ""
            # Past the descriptor: it stays pending until it is written.
            model_instance.__dict__[self.attname] = sealed
        return getattr(model_instance, self.attname)

    # What goes to and comes from the database is ciphertext, and nothing else gets through.

    def from_db_value(self, value: str | None, expression: Any, connection: Any) -> str | None:
        return None if value is None else Sealed(value)

    def get_prep_value(self, value: Any) -> Any:
        value = super(models.TextField, self).get_prep_value(value)
        if value in (None, ""):
            return ""
        if not isinstance(value, Sealed):
            raise self.not_by_update()
        return str(value)

    def not_by_update(self) -> FieldError:
        return FieldError(
            f"{self.name!r} is encrypted: set it on an instance and call save(). update() and "
            "bulk_update() can't write it."
        )

    def get_lookup(self, lookup_name: str) -> Any:
        if lookup_name == "exact":
            return _SealedExact
        raise _no_lookups(self)

    def get_transform(self, lookup_name: str) -> Any:
        raise _no_lookups(self)

    def to_python(self, value: Any) -> Any:
        # Fixtures hold the ciphertext, which loaddata must not encrypt a second time. Somebody
        # who types a ciphertext as a password gains nothing: it opens in its own row only.
        if isinstance(value, str) and not isinstance(value, Sealed) and Sealed.looks_like(value):
            return Sealed(value)
        return value

    # Forms

    def formfield(self, **kwargs: Any) -> Any:
        # Neither TextField's Textarea nor the admin's wide input: it has to stay write-only.
        widget = kwargs.get("widget")
        if not isinstance(widget, (SecretInput, SecretTextarea)):
            widget = SecretInput()
        return models.Field.formfield(
            self, **{**kwargs, "form_class": SecretFormField, "widget": widget}
        )

    def save_form_data(self, instance: Any, data: Any) -> None:
        if data:
            setattr(instance, self.name, data)
