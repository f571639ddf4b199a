"""Users, organizations and tokens: who is asking, and what they may do.

Tokens are made up, long and unlike any other text, so that a test can look for them everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hubserver.errors import bad_credentials


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking: a user with a role of the token, or a stranger."""

    name: str | None
    role: str = "none"

    @property
    def signed_in(self) -> bool:
        """Whether a token came with the request."""
        return self.name is not None


STRANGER = Caller(None)

TOKENS = {
    "alice": "hf_aliceWriteQ7fKz2LmXpV9tRbY4sNd",
    "alice-read": "hf_aliceReadOnlyW3xJc8HgUe5vTkP6",
    "bob": "hf_bobWriteM2nZr7DyLq4wGsF9xKt1Ej",
    "carol": "hf_carolWriteB8vXh3PcRu6yNm5QaJd2",
}
"""The tokens that the server knows, by the name that tests use for them."""

BAD_TOKEN = "hf_nobodyHasThisTokenT0kXw9Zs4Lf7"  # noqa: S105
"""A token of the right shape that the server does not know."""


@dataclass(slots=True)
class People:
    """All users and organizations."""

    callers: dict[str, Caller] = field(
        default_factory=lambda: {
            token: Caller(key.split("-")[0], "read" if key.endswith("-read") else "write")
            for key, token in TOKENS.items()
        }
    )
    # organization -> member -> role
    organizations: dict[str, dict[str, str]] = field(
        default_factory=lambda: {
            "acme": {"alice": "admin", "bob": "read"},
            "lab": {"carol": "write"},
        }
    )

    def caller(self, authorization: str | None) -> Caller:
        """Who sent an ``Authorization`` header.

        Raises:
            HubError: There is a token, but nobody's.
        """
        if not authorization:
            return STRANGER
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or token.strip() not in self.callers:
            raise bad_credentials()
        return self.callers[token.strip()]

    def names(self) -> set[str]:
        """All users."""
        return {caller.name for caller in self.callers.values() if caller.name}

    def may_see(self, caller: Caller, namespace: str) -> bool:
        """Whether private repositories of a namespace exist for the caller."""
        if caller.name is None:
            return False
        return caller.name == namespace or caller.name in self.organizations.get(namespace, {})

    def may_write(self, caller: Caller, namespace: str) -> bool:
        """Whether the caller may create and change repositories of a namespace."""
        if caller.name is None or caller.role != "write":
            return False
        member = self.organizations.get(namespace, {}).get(caller.name)
        return caller.name == namespace or member in {"write", "admin"}

    def who(self, caller: Caller) -> dict[str, object]:
        """The answer to ``whoami-v2``.

        Raises:
            HubError: A stranger asks.
        """
        if caller.name is None:
            raise bad_credentials()
        return {
            "type": "user",
            "id": f"user-{caller.name}",
            "name": caller.name,
            "fullname": caller.name.title(),
            "email": f"{caller.name}@example.org",
            "emailVerified": True,
            "canPay": False,
            "isPro": False,
            "periodEnd": None,
            "orgs": [
                {
                    "type": "org",
                    "id": f"org-{name}",
                    "name": name,
                    "roleInOrg": members[caller.name],
                }
                for name, members in self.organizations.items()
                if caller.name in members
            ],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "a token of a test", "role": caller.role},
            },
        }
