"""Whether a store can be written to and read from, without touching any workspace's quota."""

from __future__ import annotations

import uuid
from typing import Final

from braze_sends.errors import StoreError
from braze_sends.quota.rule.ledger import Lease
from braze_sends.stores.store import Store, Transaction

#: The workspace that is written to.
SCRATCH: Final = "braze-sends doctor"

#: Seconds after which the store may drop what a check left there that was killed.
KEPT: Final = 8.0


async def check_store(store: Store) -> None:
    """Write a record of the check's own to the store, read it, and take it back.

    Several checks of one store may run at once.

    Raises:
        StoreError: the store cannot be used, or what was written is not there when read.
    """
    lease = uuid.uuid4().hex

    def write(transaction: Transaction) -> None:
        now, bucket = transaction.now, transaction.bucket
        bucket.advance(now)  # drops what a killed check left
        bucket.leases[lease] = Lease(
            pair=None, attempt=None, begun=now, deadline=now + KEPT, ripe=now
        )

    def take_back(transaction: Transaction) -> bool:
        return transaction.bucket.leases.pop(lease, None) is not None

    await store.transact(SCRATCH, (), write)
    if not await store.transact(SCRATCH, (), take_back):
        raise StoreError(
            "what was written to the store is not there when read: check that nothing else deletes "
            "from it, and that reads go to the server that takes the writes"
        )
