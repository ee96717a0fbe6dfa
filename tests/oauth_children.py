"""A process with five threads that need a credential's access token at once."""

import os
import sys
import threading

import django


def main(pk: str) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    from django.db import connection

    from mailpool.models import Credential
    from mailpool.oauth import tokens

    rows = Credential.objects.select_related("server", "oauth_client")
    found = []

    def work() -> None:
        found.append(str(tokens.access_token(rows.get(pk=pk))))
        connection.close()

    rows.get(pk=pk)
    print("ready", flush=True)
    sys.stdin.readline()
    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\n".join(found))


if __name__ == "__main__":
    main(sys.argv[1])
