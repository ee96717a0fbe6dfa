"""How the page of imports and exports looks."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.mark.parametrize("width", [1200, 390])
def test_import_and_export_are_two_sections_with_buttons_of_one_size(page, log_in, width):
    page.set_viewport_size({"width": width, "height": 800})
    log_in("/admin/mailpool/credential/transfer/")
    titles = page.locator("#content-main .module > h2")
    assert titles.all_text_contents() == ["Import", "Export"]
    look, export = page.locator(".mailpool-start-body").all()
    first, second = look.bounding_box(), export.bounding_box()
    assert second["y"] - (first["y"] + first["height"]) > 40  # room for the title
    buttons = page.locator("#content-main .submit-row").locator("input, button").all()
    assert len(buttons) == 3
    assert min(button.bounding_box()["height"] for button in buttons) >= 28
    # Texts begin at one edge, and nothing sticks out.
    edges = {round(each.bounding_box()["x"]) for each in page.locator("#content-main form p").all()}
    assert edges == {round(page.locator("#content-main label").bounding_box()["x"])}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
