"""A repository that the exported key of another repository's domain opens: a store for the files of one qube.

Its history has keys of its own. What lies in the domain of the key file has that file's keys, so that whoever holds the
other repository can take it over there (docs/decisions/0107).
"""

from __future__ import annotations

from lamella.base.errors import IntegrityError, KeyRefused
from lamella.crypto.derive import DomainKeys, Keys, Lent
from lamella.crypto.slots import Secret
from lamella.format.domain_key import decode


def lend(keys: Keys, secret: Secret) -> None:
    """Give the keys of the domain key file that `secret` is. Raises KeyRefused if it is not for one volume."""
    try:
        exported, trees = decode(secret.value)
    except IntegrityError as error:
        raise KeyRefused(f"the domain key file is damaged: {error.message}") from error
    if len(trees) != 1:
        hint = "make one with: lamella key export-domain NAME --inside --to FILE"
        raise KeyRefused(f"this domain key file is for {len(trees)} volumes, and a store inside takes one", hint=hint)
    domain = DomainKeys(exported.domain_id, exported.r, exported.id_alg, exported.enc, exported.id_key)
    keys.lend(Lent(domain, trees[0].volume_id))
