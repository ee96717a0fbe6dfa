"""OAuth 2: access tokens instead of passwords.

``provider`` asks a provider for them; ``tokens`` keeps each credential's own fresh.
"""
