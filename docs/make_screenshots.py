"""Takes the documentation's screenshots, from the example project, in a real browser.

    python docs/make_screenshots.py [--chromium /usr/bin/chromium] [--out docs/_static/screenshots]
    python docs/make_screenshots.py --dark --width 390 --out /tmp/look  # to be looked at
    python docs/make_screenshots.py --all look  # every page, wide, dark and on a phone, by its test

Needs the extras ``demo`` and ``browser``, and Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
PORT = 8765
URL = f"http://127.0.0.1:{PORT}"
WIDE, PHONE = 1280, 390
ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]


def start_demo(state: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The demo with its pages, and the admin's password."""
    environment = {**os.environ, "EXAMPLE_STATE_DIR": str(state), "COLUMNS": "96"}
    command = [sys.executable, str(ROOT / "example_project" / "manage.py"), "demo"]
    process = subprocess.Popen(
        [*command, "--port", str(PORT), "--save-svg", str(state / "terminal.svg")],
        env=environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if b"Ctrl-C ends" in line:
            break
    for _ in range(200):
        try:
            urllib.request.urlopen(URL)
            break
        except OSError:
            if process.poll() is not None:
                raise SystemExit("The demo ended early.") from None
    lines = (state / ".env").read_text().splitlines()
    return process, next(line.split("=", 1)[1] for line in lines if line.startswith("ADMIN_"))


# A process beside the web server, as a task worker is one.
WORKER = """
import sys
import mailpool
from django.core.mail import send_mail

for slug in ("bob", "mary"):
    with mailpool.use_tenant(slug):
        send_mail("Hello", "Hello!", f"{slug}@example.com", ["you@example.com"])
print("sent", flush=True)
sys.stdin.read()
"""

ACCOUNTS = """\
tenant,tenant_name,preset,username,password,senders
anna,Anna's Flowers,fastmail,anna@flowers.example,correct horse,@flowers.example
carl,Carl & Sons,fastmail,carl@sons.example,battery staple,carl@sons.example office@sons.example
"""


def start_worker(state: Path) -> subprocess.Popen[bytes]:
    """Has sent for both tenants when this returns, and keeps its connections open."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "example_project" / "manage.py"), "shell", "-c", WORKER],
        env={**os.environ, "EXAMPLE_STATE_DIR": str(state)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    if not any(b"sent" in line for line in process.stdout):
        raise SystemExit("The worker ended early.")
    return process


def log_in(page: Page, password: str) -> None:
    page.goto(f"{URL}/admin/")
    page.fill("#id_username", "admin")
    page.fill("#id_password", password)
    page.click("input[type=submit]")


def take_all(browser: Browser, out: Path, state: Path, password: str, **look: object) -> None:
    """Every page, once with this look (viewport, colour scheme)."""
    context = browser.new_context(**look)  # type: ignore[arg-type]
    page = context.new_page()

    def shot(name: str, full_page: bool = True) -> None:
        page.screenshot(path=out / f"{name}.png", full_page=full_page)

    page.goto(URL)
    for _ in range(2):
        page.select_option("#id_tenant", label="Bob")
        page.click("button")
    page.select_option("#id_tenant", label="Mary")
    page.click("button")
    shot("demo-page")
    log_in(page, password)
    shot("admin-index")
    page.goto(f"{URL}/admin/mailpool/mailserver/")
    shot("servers")
    page.click("#result_list tbody th a")
    shot("server")
    page.click("text=Verify connection")
    page.click(".submit-row input")
    shot("server-verified")
    page.goto(f"{URL}/admin/mailpool/mailserver/")
    page.click("#result_list tbody th a")
    page.get_by_role("link", name="Pause", exact=True).click()
    shot("pause")
    page.goto(f"{URL}/admin/mailpool/mailserver/connections/")
    shot("connections")
    page.click(".mailpool-actions >> text=Reset")
    shot("reset")
    page.goto(f"{URL}/admin/mailpool/credential/")
    shot("credentials")
    page.click("#result_list tbody th a")
    shot("credential")
    page.click("text=Verify connection")
    page.click(".submit-row input")
    shot("credential-verified")
    page.go_back()
    page.go_back()
    page.click("text=Send test message")
    page.fill("#id_recipient", "you@example.com")
    page.click(".submit-row input")
    shot("test-message")
    page.goto(f"{URL}/admin/mailpool/tenant/")
    page.click("#result_list tbody th a")
    shot("tenant")
    page.goto(f"{URL}/admin/mailpool/mailserver/add/?preset=microsoft365")
    shot("server-add")
    page.goto(f"{URL}/admin/mailpool/mailserver/")
    page.click("#result_list tbody th a")
    page.click("text=Change host, port or security")
    page.fill("#id_host", "mail.example.net")
    page.click(".submit-row input")
    shot("server-move")
    page.goto(f"{URL}/admin/mailpool/credential/transfer/")
    page.set_input_files("#id_file", str(state / "accounts.csv"))
    page.click("text=Look at the file")
    shot("import")
    fail(page, "mary")
    page.goto(f"{URL}/admin/mailpool/deliveryrecord/")
    shot("records", full_page=False)  # one of many screens
    page.locator("tr:has(.mailpool-failed) th a").last.click()
    shot("record")
    context.close()


def fail(page: Page, username: str) -> None:
    """Mistype this account's password, and try it twice."""
    page.goto(f"{URL}/admin/mailpool/credential/")
    page.locator("#result_list th a", has_text=username).click()
    page.fill("#id_password", "mistyped")
    page.click("[name=_test]")
    for _ in range(2):
        page.fill("#id_recipient", "you@example.com")
        page.click(".submit-row input")


def take_dashboard(browser: Browser, out: Path, password: str) -> None:
    """The dashboard, in the looks that it has to stand."""
    for scheme, width in (("light", WIDE), ("dark", WIDE), ("light", PHONE), ("dark", PHONE)):
        size = {"width": width, "height": 800}
        context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        log_in(page, password)
        page.goto(f"{URL}/admin/mailpool/?span=1h")
        page.locator(".mailpool-plot canvas").first.wait_for()
        name = f"dashboard-{'phone' if width < 600 else 'wide'}-{scheme}"
        page.screenshot(path=out / f"{name}.png", full_page=width > 600)
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium")
    parser.add_argument("--out", type=Path, default=HERE / "_static" / "screenshots")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=WIDE)
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.all:
        test = str(ROOT / "tests" / "browser" / "test_every_page.py")
        environment = {**os.environ, "MAILPOOL_LOOK": str(options.all.resolve())}
        raise SystemExit(
            subprocess.call([sys.executable, "-m", "pytest", test], env=environment, cwd=ROOT)
        )
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        state = Path(folder)
        (state / "accounts.csv").write_text(ACCOUNTS)
        process, password = start_demo(state)
        processes = [process]
        browser = playwright.chromium.launch(executable_path=options.chromium, args=ARGUMENTS)
        try:
            processes.append(start_worker(state))
            page = browser.new_page(viewport={"width": 1100, "height": 600})
            page.goto(f"file://{state / 'terminal.svg'}")
            page.locator("svg").first.screenshot(path=options.out / "demo-terminal.png")
            take_all(
                browser,
                options.out,
                state,
                password,
                viewport={"width": options.width, "height": 800},
                color_scheme="dark" if options.dark else "light",
            )
            take_dashboard(browser, options.out, password)
        finally:
            browser.close()
            for each in processes:
                each.terminate()
                each.wait(20)


if __name__ == "__main__":
    main()
